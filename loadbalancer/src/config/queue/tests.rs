//! Keys of queues and their classes, in words and in files.

use ipnet::IpNet;

use super::super::{Config, ConfigErrors};
use super::*;
use decide::queue::classes::{Classes, QueueClass};

/// Every key with its default.
const ALL: &str = "[queue]
memory = \"64MiB\"
controller_timeout = \"5s\"
[[service]]
name = \"web\"
listen = [\"192.0.2.1:80\", \"192.0.2.1:53/udp\"]
[service.queue]
priority = 3
deadline = \"10s\"
at_deadline = \"reset\"
weights = [16, 8, 4, 2, 1]
target = \"100ms\"
interval = \"2s\"
max_entries = 10000
max_per_source = 256
source_prefix = { ipv4 = 24, ipv6 = 56 }
verify = \"auto\"
udp = false
marks = \"static\"
";
const SERVER: &str = "[[service.server]]\naddress = \"10.0.0.1\"\nhigh_water = 10\n";

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse("test.toml", &format!("[gateway]\ninterfaces = \"eth0\"\n{text}"))
}

fn config(text: &str) -> Config {
    parse(text).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

/// A service whose queue has these lines.
fn queue(lines: &str) -> ServiceQueue {
    let listen = "[\"192.0.2.1:80\", \"[2001:db8::1]:*\", \"192.0.2.1:53/udp\"]";
    let servers = format!("{SERVER}[[service.server]]\naddress = \"fd00::1\"\n");
    let text = format!("[[service]]\nname = \"web\"\nlisten = {listen}\n[service.queue]\n{lines}\n{servers}");
    config(&text).services[0].queue.as_deref().expect("it queues").clone()
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

#[test]
fn the_example_has_the_defaults() {
    let text = include_str!("../../../examples/queue.toml");
    let config = crate::config::Config::parse("queue.toml", text).expect("the example is right");
    assert_eq!(config.queue, QueueLimits::default());
    let queue = config.services[0].queue.as_deref().expect("the service queues");
    let usual = ServiceQueue::default();
    assert_eq!((&queue.order, queue.ring, queue.deadline), (&usual.order, usual.ring, usual.deadline));
    assert_eq!((queue.source_prefix, queue.verify, queue.marks), (usual.source_prefix, usual.verify, usual.marks));
}

#[test]
fn an_empty_table_has_the_defaults() {
    let all = config(&format!("{ALL}{SERVER}"));
    assert_eq!(all.queue, QueueLimits { memory: 67_108_864, controller_timeout: Duration::from_secs(5) });
    assert_eq!(all.services[0].queue.as_deref(), Some(&ServiceQueue::default()));
    assert_eq!(queue(""), ServiceQueue::default());
    let plain = config(&format!("[[service]]\nname = \"web\"\nlisten = \"192.0.2.1:80\"\n{SERVER}"));
    assert_eq!((plain.queue, &plain.services[0].queue), (QueueLimits::default(), &None));
    let settings =
        AdaptiveMarks { min: 4, max: 1_000, tolerance: 1.5, smoothing: 0.2, baseline_age: Duration::from_secs(300) };
    assert_eq!(queue("marks = \"adaptive\"").marks, Marks::Adaptive(settings));
    assert_eq!(queue("udp = true").udp_memory, 1_048_576);
}

#[test]
fn what_is_set_is_read_as_meant() {
    let limits = config("[queue]\nmemory = 2097152\ncontroller_timeout = \"5m\"\n").queue;
    assert_eq!(limits, QueueLimits { memory: 2_097_152, controller_timeout: Duration::from_secs(300) });
    let lines = "priority = 1
deadline = \"1h\"
at_deadline = \"drop\"
weights = [1000, 5, 4, 3, 2]
target = \"1ms\"
interval = \"10ms\"
max_entries = 1000000
max_per_source = 1000000
source_prefix = { ipv4 = 32, ipv6 = 128 }
verify = \"never\"
udp = true
udp_memory = \"64KiB\"
marks = \"adaptive\"
adaptive = { min = 1, max = 1, tolerance = 1, smoothing = 0.01, baseline_age = \"10s\" }";
    let order = order::Settings {
        weights: [1_000, 5, 4, 3, 2],
        target: Duration::from_millis(1),
        interval: Duration::from_millis(10),
        max_entries: 1_000_000,
        max_per_source: 1_000_000,
    };
    let expected = ServiceQueue {
        order,
        ring: 0,
        deadline: HOUR,
        at_deadline: AtDeadline::Drop,
        source_prefix: (32, 128),
        verify: Verify::Never,
        udp_memory: 65_536,
        marks: Marks::Adaptive(AdaptiveMarks {
            min: 1,
            max: 1,
            tolerance: 1.0,
            smoothing: 0.01,
            baseline_age: Duration::from_secs(10),
        }),
        responder: None,
        classes: Classes::default(),
    };
    assert_eq!(queue(lines), expected);
    // Of what has two parts one may be set.
    assert_eq!(queue("source_prefix = { ipv6 = 64 }").source_prefix, (24, 64));
    assert_eq!(queue("verify = \"always\"").verify, Verify::Always);
    assert_eq!(queue("max_entries = 100").order.max_per_source, 100);
}

#[test]
fn classes_are_read_as_meant() {
    let lines = "deadline = \"20s\"
[[service.queue.class]]
name = \"gold\"
priority = 1
deadline = \"5s\"
clients = [\"10.1.0.0/16\", \"2001:db8::/32\"]
dscp = 46
ports = [80, 8080]
[[service.queue.class]]
name = \"wide\"
priority = 5
clients = \"10.0.0.0/8\"
dscp = []";
    let gold = QueueClass {
        name: "gold".to_owned(),
        ring: 0,
        deadline: Duration::from_secs(5),
        clients: vec![net("10.1.0.0/16"), net("2001:db8::/32")],
        dscp: vec![46],
        ports: vec![80, 8_080],
    };
    let wide = QueueClass {
        name: "wide".to_owned(),
        ring: 4,
        deadline: Duration::from_secs(20),
        clients: vec![net("10.0.0.0/8")],
        dscp: Vec::new(),
        ports: Vec::new(),
    };
    assert_eq!(queue(lines).classes[..], [gold, wide]);
}

#[test]
fn the_prefix_decides_before_the_dscp_and_this_before_the_port() {
    let second = Duration::from_secs(1);
    let class = |number: u8, dscp: &[u8], ports: &[u16]| QueueClass {
        name: number.to_string(),
        ring: number,
        deadline: u32::from(number) * second,
        clients: Vec::new(),
        dscp: dscp.to_vec(),
        ports: ports.to_vec(),
    };
    let classes = vec![class(1, &[], &[443, 80]), class(2, &[0, 63], &[53]), class(3, &[46], &[])];
    let queue = ServiceQueue { ring: 4, deadline: 9 * second, classes: classes.into(), ..ServiceQueue::default() };
    for (by_prefix, dscp, port, number) in [
        (None, 1, 1, 0),
        (None, 1, 80, 1),
        (None, 1, 443, 1),
        (None, 1, 53, 2),
        (None, 0, 443, 2),
        (None, 63, 1, 2),
        (None, 46, 53, 3),
        (Some(0), 46, 53, 1),
        (Some(2), 0, 0, 3),
        // What a newer or older configuration has is no reason to panic; neither is what no packet has.
        (Some(3), 46, 80, 3),
        (Some(u16::MAX), 1, 1, 0),
        (None, 64, 443, 1),
        (None, u8::MAX, 0, 0),
    ] {
        let (ring, deadline) = if number == 0 { (4, 9) } else { (number as u8, u32::from(number)) };
        let expected = (number, ring, deadline * second);
        assert_eq!(queue.class_of(by_prefix, dscp, port), expected, "{by_prefix:?} {dscp} {port}");
    }
    let most: Vec<QueueClass> = (0..254u16).map(|port| class(1, &[], &[port])).collect();
    let queue = ServiceQueue { classes: most.into(), ..ServiceQueue::default() };
    for port in 0..254 {
        assert_eq!(queue.class_of(None, 0, port), (port + 1, 1, second));
    }
    assert_eq!(queue.class_of(Some(253), 0, 0), (254, 1, second));
    assert_eq!(queue.class_of(None, 0, 254), (0, 2, Duration::from_secs(10)));
}

#[test]
fn clients_learn_of_the_deadline_as_of_a_refusal() {
    for (refuse, given, expected) in [
        ("reset", "", AtDeadline::Reset),
        ("drop", "", AtDeadline::Drop),
        ("drop", "at_deadline = \"reset\"", AtDeadline::Reset),
        ("reset", "at_deadline = \"drop\"", AtDeadline::Drop),
        ("reset", "at_deadline = \"respond\"", AtDeadline::Respond),
    ] {
        let text = format!(
            "[[service]]\nname = \"web\"\nlisten = \"192.0.2.1:80\"\n\
             refuse = \"{refuse}\"\n[service.queue]\n{given}\n{SERVER}"
        );
        let queue = config(&text).services[0].queue.as_deref().expect("it queues").clone();
        assert_eq!(queue.at_deadline, expected, "{text}");
        let usual = Responder { retry_after: Duration::from_secs(10), page: None };
        assert_eq!(queue.responder, (expected == AtDeadline::Respond).then_some(usual));
    }
}

#[test]
fn what_makes_servers_fill_up_lets_connections_wait() {
    let service = |lines: &str, server: &str| {
        format!(
            "[[service]]\nname = \"web\"\nlisten = \"192.0.2.1:80\"\n{lines}\n\
             [[service.server]]\naddress = \"10.0.0.1\"\n{server}"
        )
    };
    for (lines, server) in [
        ("queue = {}", "high_water = 10"),
        ("queue = {}", "[[service.server]]\naddress = \"10.0.0.2\"\nhigh_water = 10"),
        ("queue = {}\nagent = { port = 9 }", ""),
        ("queue = { marks = \"adaptive\" }", ""),
    ] {
        assert!(config(&service(lines, server)).services[0].queue.is_some());
    }
    // What is wrong already is told once.
    for (lines, server, told) in [
        ("queue = {}", "high_water = 0", "`high_water` is out of range"),
        ("queue = {}\nagent = { port = 0 }", "", "`port` is out of range"),
        ("queue = { marks = \"some\" }", "", "`some` is no value for `marks`"),
    ] {
        let errors = parse(&service(lines, server)).expect_err("it is wrong").0;
        let messages: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(messages, [told]);
    }
}

#[test]
fn what_only_looks_wrong_is_taken() {
    let service =
        |listen: &str, lines: &str| format!("[[service]]\nname = \"web\"\nlisten = {listen}\n{lines}\n{SERVER}");
    let class = "[[service.queue.class]]\nname = \"a\"\npriority = 1\n";
    let other = "[[service.queue.class]]\nname = \"b\"\npriority = 1\n";
    let tcp = "\"192.0.2.1:80\"";
    for (reason, text) in [
        (
            "a longer prefix goes before a shorter one",
            service(tcp, &format!("{class}clients = \"0.0.0.0/0\"\n{other}clients = \"10.0.0.0/8\"")),
        ),
        ("one class has a DSCP and another a port", service(tcp, &format!("{class}dscp = [63]\n{other}ports = [80]"))),
        ("any port is listened on", service("\"192.0.2.1:*\"", &format!("{class}ports = [1, 65535]"))),
        ("datagrams alone may wait", service("\"192.0.2.1:53/udp\"", "queue.udp = true")),
        (
            "datagrams have classes as well",
            service("\"192.0.2.1:53/udp\"", &format!("queue.udp = true\n{class}ports = 53")),
        ),
        (
            "datagrams have any port, but connections have one",
            service("[\"192.0.2.1:*/udp\", \"192.0.2.1:80\"]", "queue.at_deadline = \"respond\""),
        ),
        ("the deadline is just beyond the target", service(tcp, "queue.deadline = \"101ms\"")),
    ] {
        if let Err(errors) = parse(&text) {
            panic!("{reason}, but of\n{text}\n{errors}");
        }
    }
}

#[test]
fn more_classes_than_have_numbers_are_told() {
    let classes = |count: usize| {
        let class = |port| format!("[[service.queue.class]]\nname = \"c{port}\"\npriority = 1\nports = {port}\n");
        let classes: String = (1..=count).map(class).collect();
        parse(&format!("[[service]]\nname = \"web\"\nlisten = \"192.0.2.1:*\"\n{classes}{SERVER}"))
    };
    assert_eq!(
        classes(254).map(|config| config.services[0].queue.as_ref().map(|queue| queue.classes.len())),
        Ok(Some(254))
    );
    let errors = classes(300).expect_err("there are too many").0;
    let told: Vec<_> = errors.iter().map(|error| (error.line, error.message.as_str())).collect();
    assert_eq!(told, [(5 + 4 * 254 + 1, "there are 300 classes, but room for 254")]);
}

#[test]
fn sizes_have_units() {
    for (text, expected) in [
        ("16777216", 1 << 24),
        ("\"1MiB\"", 1 << 20),
        ("\"16GiB\"", 1 << 34),
        ("\"2048KiB\"", 1 << 21),
        ("\"2 MiB\"", 1 << 21),
        ("\"2097152B\"", 1 << 21),
        ("\"2000KB\"", 2_000_000),
        ("\"10MB\"", 10_000_000),
        ("\"1GB\"", 1_000_000_000),
    ] {
        assert_eq!(config(&format!("[queue]\nmemory = {text}")).queue.memory, expected, "{text}");
    }
    let range = "choose a size from 1MiB to 16GiB";
    let form = "write a whole number and a unit, such as \"512KiB\", \"64MiB\", \"10MB\"";
    for (text, message, help) in [
        ("0", "`memory` is out of range", range),
        ("-1", "`memory` is out of range", range),
        ("\"1MB\"", "`memory` is out of range", range),
        ("\"17GiB\"", "`memory` is out of range", range),
        ("\"99999999999999999999GiB\"", "`memory` is out of range", range),
        ("\"18446744073709551615GiB\"", "`memory` is out of range", range),
        ("\"64\"", "`64` is no size", form),
        ("\"1.5GiB\"", "`1.5GiB` is no size", form),
        ("\"64mib\"", "`64mib` is no size", form),
        ("\"MiB\"", "`MiB` is no size", form),
        ("\"\"", "`` is no size", form),
        ("1.5", "`memory` is to be a size, not float", "write memory = \"1MiB\""),
        ("[]", "`memory` is to be a size, not array", "write memory = \"1MiB\""),
    ] {
        let errors = parse(&format!("[queue]\nmemory = {text}")).expect_err("it is wrong").0;
        let told: Vec<_> = errors.iter().map(|error| (error.message.as_str(), error.help.as_str())).collect();
        assert_eq!(told, [(message, help)], "{text}");
    }
}

/// A directory that is removed with what is in it.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("loadbalancer-config-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("it can be made");
        Self(path)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.0.join(name), bytes).expect("it can be written");
    }

    /// Loads a configuration that stands here; this one's path is cut from messages.
    fn load(&self, lines: &str) -> Result<ServiceQueue, Vec<(usize, String)>> {
        let text = "[gateway]\ninterfaces = \"eth0\"\n[[service]]\nname = \"web\"\nlisten = \"192.0.2.1:80\"";
        self.write("lb.toml", format!("{text}\n[service.queue]\n{lines}\n{SERVER}"));
        let here = format!("{}/", self.0.display());
        match Config::load(&self.0.join("lb.toml")) {
            Ok(config) => Ok(config.services[0].queue.as_deref().expect("it queues").clone()),
            Err(errors) => {
                Err(errors.0.into_iter().map(|error| (error.line, error.message.replace(&here, ""))).collect())
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing depends on it, and another panic would hide the first.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

const CLASS: &str = "[[service.queue.class]]\nname = \"gold\"\npriority = 1\nclients_file = \"gold.txt\"";

#[test]
fn clients_are_read_from_a_file_beside_the_configuration() {
    let directory = Directory::new("clients");
    directory.write("gold.txt", "# customers\n10.1.0.0/16\n\n \t10.2.0.0/16 # the new ones\r\n10.3.3.3/32");
    let own = format!("{CLASS}\nclients = \"10.9.0.0/16\"");
    let queue = directory.load(&own).unwrap_or_else(|errors| panic!("{errors:?}"));
    let clients = ["10.9.0.0/16", "10.1.0.0/16", "10.2.0.0/16", "10.3.3.3/32"].map(net);
    assert_eq!(queue.classes[0].clients, clients);
    directory.write("gold.txt", "");
    assert_eq!(directory.load(CLASS).map(|queue| queue.classes[0].clients.len()), Ok(0));
    // As many lines as there may be; most say nothing, which is read fastest.
    let most = "\n".repeat(999_999);
    directory.write("gold.txt", format!("{most}10.0.0.0/8"));
    assert_eq!(directory.load(CLASS).map(|queue| queue.classes[0].clients.clone()), Ok(vec![net("10.0.0.0/8")]));
    directory.write("gold.txt", format!("{most}\n10.0.0.0/8"));
    assert_eq!(directory.load(CLASS), Err(vec![(10, "gold.txt has more than 1000000 lines".to_owned())]));
}

#[test]
fn what_is_wrong_in_a_file_of_clients_is_told_with_its_line() {
    let directory = Directory::new("wrong-clients");
    let silver = "[[service.queue.class]]\nname = \"silver\"\npriority = 2\nclients_file = \"silver.txt\"";
    let both = format!("{CLASS}\n{silver}");
    let wrong: String = (0..30).map(|number| format!("x{number}\n")).collect();
    let mut many: Vec<(usize, String)> =
        (0..10).map(|number| (10, format!("line {} of gold.txt: `x{number}` is no prefix", number + 1))).collect();
    many.push((10, "20 more lines of gold.txt are wrong".to_owned()));
    let same: String = (0..12).map(|number| format!("10.{number}.0.0/16\n")).collect();
    let mut repeated: Vec<(usize, String)> = (0..10)
        .map(|number| {
            let line = number + 1;
            let message = format!(
                "class silver has 10.{number}.0.0/16 in line {line} of silver.txt, \
                 which class gold has already, in line {line} of gold.txt"
            );
            (14, message)
        })
        .collect();
    repeated.push((14, "2 more are repeated in class silver".to_owned()));
    let told = |messages: &[&str]| messages.iter().map(|message| (10, (*message).to_owned())).collect::<Vec<_>>();
    let long = format!("{}/8", "1".repeat(100));
    for (gold, silver, lines, expected) in [
        (
            "#\n10.1.2.3/16\n10.1.2.3\n10.0.0.0/33",
            "",
            CLASS,
            told(&[
                "line 2 of gold.txt: `10.1.2.3/16` has bits set beyond its length",
                "line 3 of gold.txt: `10.1.2.3` has no length",
                "line 4 of gold.txt: `10.0.0.0/33` is no prefix",
            ]),
        ),
        (
            "10.0.0.0/8\n10.1.0.0/16\n10.0.0.0/8",
            "",
            CLASS,
            told(&["class gold has 10.0.0.0/8 in line 3 of gold.txt twice, first in line 1 of gold.txt"]),
        ),
        (
            "10.0.0.0/8\n2001:db8::/32\n2001:db9::/32",
            "",
            CLASS,
            told(&["class gold has 2001:db8::/32 in line 2 of gold.txt, but service web has no IPv6 TCP listener"]),
        ),
        (&long, "", CLASS, told(&[&format!("line 1 of gold.txt: `{}` is no prefix", "1".repeat(60))])),
        (&wrong, "", CLASS, many),
        (&same, &same, &both, repeated),
    ] {
        directory.write("gold.txt", gold);
        directory.write("silver.txt", silver);
        assert_eq!(directory.load(lines), Err(expected), "{gold}");
    }
    directory.write("gold.txt", b"10.0.0.0/8\n\xff");
    assert_eq!(directory.load(CLASS), Err(told(&["line 2 of gold.txt is no UTF-8 text"])));
    let missing = CLASS.replace("gold.txt", "none.txt");
    assert_eq!(directory.load(&missing), Err(told(&["cannot read none.txt: No such file or directory (os error 2)"])));
}

#[test]
fn the_page_is_read_with_the_configuration() {
    let directory = Directory::new("page");
    let lines = "at_deadline = \"respond\"\nretry_after = \"1day\"\npage = \"wait.html\"";
    let most = vec![b'x'; 65_536];
    directory.write("wait.html", &most);
    let responder = Responder { retry_after: Duration::from_secs(86_400), page: Some(most.clone()) };
    assert_eq!(directory.load(lines).map(|queue| queue.responder), Ok(Some(responder)));
    let told = |message: &str| Err(vec![(9, message.to_owned())]);
    directory.write("wait.html", [&most[..], b"x"].concat());
    assert_eq!(directory.load(lines), told("wait.html has more than 64KiB"));
    assert_eq!(directory.load(&lines.replace("wait.html", ".")), told(". is no plain file"));
    let absolute = directory.0.join("wait.html");
    directory.write("wait.html", "a");
    let queue = directory.load(&lines.replace("wait.html", &absolute.display().to_string()));
    assert_eq!(queue.map(|queue| queue.responder.and_then(|responder| responder.page)), Ok(Some(b"a".to_vec())));
}
