//! Every rule has its message, with place and fix; what is right is read as it is meant.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::dataplane::sizes::Sizes;
use crate::health::{AgentCheck, CheckKind, HttpCheck, TlsCheck, UdpCheck, UdpExpect, Verify};
use decide::sampling::PassiveShare;
use model::mode::Mode;
use model::time::Timeouts;

const GATEWAY: &str = "[gateway]\ninterfaces = [\"eth0\"]\n";

/// A service with these lines, and one server.
fn service(lines: &str) -> String {
    format!(
        "{GATEWAY}[[service]]\nname = \"web\"\nlisten = [\"192.0.2.1:80\"]\n{lines}\n[[service.server]]\naddress = \"10.0.0.1\"\n"
    )
}

fn errors(text: &str) -> Vec<ConfigError> {
    match Config::parse("test.toml", text) {
        Ok(config) => panic!("{text}\nwas taken as {config:#?}"),
        Err(errors) => errors.0,
    }
}

/// A case of `refused.txt`: `-` and the `+` after it replace text in a plain configuration, `gateway+`, `service+` and
/// `server+` add to the end of that section, and the rest is what is printed.
fn refused_case(case: &str) -> (String, &str) {
    let (mut gateway, mut service, mut server) = (String::new(), String::new(), String::new());
    let mut replacements: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
    let mut expected = case;
    while let Some((line, rest)) = expected.split_once('\n') {
        let (sign, text) = line.split_once(' ').unwrap_or((line, ""));
        match (sign, replacements.last_mut()) {
            ("gateway+", _) => gateway.extend([text, "\n"]),
            ("service+", _) => service.extend([text, "\n"]),
            ("server+", _) => server.extend([text, "\n"]),
            ("-", Some((old, new))) if new.is_empty() => old.push(text),
            ("-", _) => replacements.push((vec![text], Vec::new())),
            ("+", Some((_, new))) => new.push(text),
            _ => break,
        }
        expected = rest;
    }
    let mut text = format!(
        "{GATEWAY}{gateway}[[service]]\nname = \"web\"\nlisten = [\"192.0.2.1:80\"]\n{service}[[service.server]]\naddress = \"10.0.0.1\"\n{server}"
    );
    for (old, new) in replacements {
        let old = old.join("\n");
        assert!(text.contains(&old), "`{old}` is not in\n{text}");
        text = text.replacen(&old, &new.join("\n"), 1);
    }
    (text, expected.trim_end())
}

#[test]
fn examples_are_right_and_the_full_one_has_the_defaults() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut modes = Vec::new();
    for entry in std::fs::read_dir(directory).expect("there are examples") {
        let path = entry.expect("listed").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let config = Config::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        modes.extend(config.services.iter().map(|service| service.mode));
        if path.ends_with("full.toml") {
            let minimal = Config::parse("minimal", &service("check = { type = \"http\" }")).expect("it is right");
            assert_eq!(config.gateway, minimal.gateway);
            assert_eq!(config.limits, Sizes::default());
            assert_eq!(config.timeouts, Timeouts::default());
            assert_eq!(config.admin, Admin::default());
            let metrics = Config::parse("minimal", &format!("{GATEWAY}[metrics]\n")).expect("it is right").metrics;
            assert_eq!((config.metrics, minimal.metrics), (metrics, None));
            let [full] = &config.services[..] else { panic!("one service") };
            let [plain] = &minimal.services[..] else { panic!("one service") };
            let renamed = Service { listen: full.listen.clone(), servers: full.servers.clone(), ..plain.clone() };
            assert_eq!(*full, renamed);
            let server = &full.servers[0];
            assert_eq!((server.name.as_str(), server.weight, server.tier), ("10.0.0.11", 1, 0));
        }
    }
    for mode in Mode::ALL {
        assert!(modes.contains(&mode), "there is no example of {}", mode.label());
    }
}

#[test]
fn keys_without_default_are_right_in_the_full_example() {
    let mut shown = 0;
    let mut text = String::new();
    for line in include_str!("../../examples/full.toml").lines() {
        let key = line.strip_prefix("# ").filter(|line| {
            line.split_once(" = ")
                .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        });
        let header = line.strip_prefix("# ").filter(|line| line.starts_with('[') && !line.contains(' '));
        shown += usize::from(key.is_some());
        text.extend([key.or(header).unwrap_or(line), "\n"]);
    }
    assert_eq!(shown, 97, "{text}");
    let told: Vec<String> = errors(&text).into_iter().map(|error| error.message).collect();
    // What means nothing beside the rest, and a file that is not there.
    let expected = [
        "`gue_port` means nothing in mode nat",
        "`path` is for agents of type json only",
        "`host` is for agents of type json only",
        "all servers of service web are in the same tier, so there is none to help",
        "`udp_memory` means nothing while no datagrams wait",
        "`retry_after` means nothing without a response at the deadline",
        "`page` means nothing without a response at the deadline",
        "`adaptive` means nothing with static marks",
        "cannot read gold.txt: No such file or directory (os error 2)",
    ];
    assert_eq!(told, expected);
}

#[test]
fn all_errors_are_told_at_once_in_order() {
    let text = "[gateway]\ninterfaces = [\"eth0\"]\non_stop = \"stay\"\n[[service]]\nlisten = [\"x\"]\nmod = \"nat\"\n";
    let messages: Vec<String> = errors(text).into_iter().map(|error| error.message).collect();
    assert_eq!(
        messages,
        [
            "`stay` is no value for `on_stop`",
            "[[service]] has no `name`",
            "a service without a name has no servers",
            "`x` is no address to listen on",
            "unknown key `mod` in [[service]]"
        ]
    );
}

#[test]
fn a_file_that_cannot_be_read_is_told() {
    let errors = Config::load(std::path::Path::new("/no/such/file.toml")).expect_err("there is none");
    let text = errors.to_string();
    assert!(
        text.contains("cannot read the configuration: No such file") && text.contains("/no/such/file.toml"),
        "{text}"
    );
}

#[test]
fn what_is_refused_is_told_with_place_and_mend() {
    let mut cases = 0;
    // The first part is empty; what follows the mark on its line is a heading.
    for case in include_str!("refused.txt").split("====").skip(1) {
        let (_, case) = case.split_once('\n').expect("a case follows its mark");
        let (text, expected) = refused_case(case);
        match Config::parse("test.toml", &text) {
            Ok(config) => panic!("{text}\nwas taken as {config:#?}"),
            Err(errors) => assert_eq!(errors.to_string(), expected, "of\n{text}"),
        }
        cases += 1;
    }
    assert!(cases > 80, "only {cases} cases were found");
}

#[test]
fn the_share_of_watched_flows_is_read() {
    let shares = [("auto", None), ("off", Some(0)), ("1/1", Some(1)), ("1/16", Some(16)), ("1/4096", Some(4_096))];
    for (text, flows) in shares {
        let config = Config::parse("test.toml", &service(&format!("passive = \"{text}\""))).expect("it is right");
        assert_eq!(config.services[0].passive, flows.map_or(PassiveShare::Auto, PassiveShare::OneIn));
    }
}

#[test]
fn what_only_looks_wrong_is_taken() {
    let other = |listen: &str| {
        format!("[[service]]\nname = \"two\"\nlisten = \"{listen}\"\n[[service.server]]\naddress = \"10.0.0.2\"\n")
    };
    let one = service("");
    for (reason, text) in [
        ("without services everything passes", GATEWAY.to_owned()),
        ("an exact port goes before any port", format!("{one}{}", other("192.0.2.1:*"))),
        ("protocols are apart", format!("{one}{}", other("192.0.2.1:80/udp"))),
        ("a service may be drained", format!("{one}weight = 0\n")),
        ("tiers may have gaps", format!("{one}[[service.server]]\naddress = \"10.0.0.2\"\ntier = 2\n")),
        (
            "a check may outlast its interval",
            service("check = { type = \"tcp\", interval = \"1s\", timeout = \"5s\" }"),
        ),
        ("nothing is checked", service("check = { type = \"none\" }").replace(":80", ":*")),
        ("a check has its own port", service("check = { type = \"tcp\", port = 22 }").replace(":80", ":53/udp")),
        (
            "names of records and codes have no case",
            service("check = { type = \"dns\", query = \"a\", record = \"aaaa\", rcode = \"nxdomain\" }")
                .replace(":80", ":53/udp"),
        ),
        ("an echo request has no port", service("check = { type = \"icmp\" }").replace(":80", ":*")),
        (
            "a command may do without a port",
            service("check = { type = \"command\", command = \"/bin/true\" }").replace(":80", ":*"),
        ),
        ("monitors may be alike", service("monitors = [{ type = \"tcp\" }, { type = \"tcp\" }]")),
        (
            "the host of a check has a port, that of its certificate none",
            service("check = { type = \"https\", host = \"[fd00::1]:8443\" }"),
        ),
        ("an agent may need a question", service("agent = { type = \"line\", port = 1, send = \"\\u0000\\n\" }")),
        ("statuses may be numbers", service("check = { type = \"http\", expect = [0o310, \"300-399\"] }")),
        ("dsr-l2 needs the server's link only", service("mode = \"dsr-l2\"").replace("10.0.0.1", "fd00::1")),
        ("tunnels mix families", service("mode = \"dsr-gue\"").replace("10.0.0.1", "fd00::1")),
        ("nat tells replies by its own port", service("").replace(":80\"", ":80\", \"192.0.2.2:80\"")),
        (
            "dnat tells replies by the server's port",
            service("mode = \"dnat\"").replace(":80\"", ":80\", \"192.0.2.2:81\""),
        ),
    ] {
        if let Err(errors) = Config::parse("test.toml", &text) {
            panic!("{reason}, but of\n{text}\n{errors}");
        }
    }
}

#[test]
fn room_that_no_limit_gives_is_told() {
    let mut text = service("");
    for number in 0..1_024 {
        let address = std::net::Ipv4Addr::from_bits(0x0a01_0000 + number);
        text += &format!("[[service.server]]\naddress = \"{address}\"\n");
    }
    let listens: Vec<String> = (1..600).map(|port| format!("\"192.0.2.2:{port}\"")).collect();
    let text = text.replace("\"192.0.2.1:80\"", &listens.join(", "));
    let told: Vec<(usize, String, String)> =
        errors(&text).into_iter().map(|error| (error.line, error.message, error.help)).collect();
    let wanted = [
        (4, "there are 1025 servers, but room for 1024", "set backends = 1025 or higher in [limits]"),
        (4, "there are 1201 addresses to listen on, but room for 1024", "set services = 301 or higher in [limits]"),
    ];
    assert_eq!(told, wanted.map(|(line, message, help)| (line, message.to_owned(), help.to_owned())));
    let many: Vec<String> = (1..9_000).map(|port| format!("\"192.0.2.2:{port}\"")).collect();
    let told = errors(&service("").replace("\"192.0.2.1:80\"", &many.join(", ")));
    assert_eq!(told[0].help, "[limits] takes services up to 4096: give some services to another gateway");
}

#[test]
fn monitors_and_agents_are_read_as_meant() {
    let lines =
        "monitors = [{ type = \"icmp\", interval = \"100ms\" }, { type = \"https\", host = \"a.example:8443\" }]
agent = { type = \"json\", port = 9, path = \"/load\", interval = \"5s\" }";
    let config = Config::parse("x", &service(lines)).unwrap_or_else(|errors| panic!("{errors}"));
    let service = &config.services[0];
    let http = |host| HttpCheck::new("GET", "/", Some(host), &[200..=399]).expect("it is right");
    let tls = TlsCheck::new(Some("a.example"), Verify::System).expect("it is right");
    let second = Duration::from_secs(1);
    let monitor = |kind, interval| Monitor { kind, port: None, through: Through::Server, interval, timeout: second };
    let expected = [
        monitor(CheckKind::Icmp, Duration::from_millis(100)),
        monitor(CheckKind::Https(http("a.example:8443"), tls), 2 * second),
    ];
    assert_eq!(service.monitors, expected);
    let check = AgentCheck::json("/load", None).expect("it is right");
    assert_eq!(service.agent, Some(Agent { check, port: 9, interval: 5 * second, timeout: second }));
    assert_eq!(service.check, None);
}

#[test]
fn checks_through_vips_take_the_listener_that_is_meant() {
    let listens = "\"192.0.2.1:*/udp\", \"192.0.2.2:80\", \"192.0.2.3:81\", \"192.0.2.4:*\", \"[2001:db8::1]:80\"";
    let vips = |mode: &str, server: &str, port: Option<u16>| {
        let text = service(&format!("mode = \"{mode}\"")).replace("\"192.0.2.1:80\"", listens);
        let text = text + "[[service.server]]\naddress = \"fd00::1\"\n";
        let config = Config::parse("x", &text).unwrap_or_else(|errors| panic!("{errors}"));
        let server = server.parse().expect("an address");
        let tcp = config.services[0].vip_of(server, &CheckKind::Tcp, port);
        let udp = UdpCheck::new(b"x".to_vec(), UdpExpect::Anything).expect("it is right");
        let udp = config.services[0].vip_of(server, &CheckKind::Udp(udp), port);
        assert_eq!(config.services[0].vip_of(server, &CheckKind::Icmp, port), None);
        [tcp, udp].map(|vip| vip.map_or("none".to_owned(), |vip| vip.to_string()))
    };
    for mode in ["nat", "dsr-ipip"] {
        for (port, tcp, udp) in [
            (None, "192.0.2.2:80", "none"),
            (Some(80), "192.0.2.2:80", "192.0.2.1:80"),
            (Some(81), "192.0.2.3:81", "192.0.2.1:81"),
            (Some(82), "192.0.2.4:82", "192.0.2.1:82"),
        ] {
            assert_eq!(vips(mode, "10.0.0.1", port), [tcp, udp], "{mode} {port:?}");
        }
    }
    for (mode, port, tcp, udp) in [
        ("nat", None, "[2001:db8::1]:80", "none"),
        ("nat", Some(81), "none", "none"),
        // A tunnel leads to a server of the other family as well.
        ("dsr-ipip", None, "[2001:db8::1]:80", "none"),
        ("dsr-ipip", Some(81), "192.0.2.3:81", "192.0.2.1:81"),
    ] {
        assert_eq!(vips(mode, "fd00::1", port), [tcp, udp], "{mode} {port:?}");
    }
}

#[test]
fn addresses_and_defaults_are_read_as_meant() {
    let config = Config::parse(
        "x",
        &service("check = { type = \"tcp\" }").replace("\"192.0.2.1:80\"", "\"192.0.2.1:80\", \"192.0.2.1:*/udp\""),
    )
    .unwrap_or_else(|errors| panic!("{errors}"));
    let service = &config.services[0];
    let listens: Vec<String> = service.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listens, ["192.0.2.1:80/tcp", "192.0.2.1:*/udp"]);
    assert_eq!(service.check.as_ref().map(|check| check.thresholds.fall.get()), Some(3));
    assert_eq!(service.servers[0].name, "10.0.0.1");
    assert_eq!(config.gateway.interfaces[0].xdp, XdpMode::Auto);
}

#[test]
fn what_is_told_stays_short_and_printable() {
    let of = |lines: &str| Config::parse("x", &service(lines)).expect_err("it is wrong").to_string();
    let many = of(&"[[service.server]]\naddress = \"10.0.0.500\"\n".repeat(500));
    assert!(many.len() < 20_000 && many.ends_with("and 480 more errors: mend these first"), "{many}");
    // One line, all of it wrong.
    let list = format!("sources = [{}]\n", "\"nowhere\", ".repeat(20_000));
    assert!(of(&list).len() < 20_000, "{}", of(&list));
    let long = of(&format!("mode = \"{}\"\n", "x".repeat(200_000)));
    assert!(long.len() < 2_000, "{long}");
    let hostile = of("mode = \"\\u001b[2J\\u0007\"\n");
    assert!(hostile.chars().all(|c| c == '\n' || !c.is_control()), "{hostile:?}");
    let elsewhere = of(&format!("mode = \"nat\"{}; x\n", " ".repeat(500)));
    assert!(elsewhere.lines().all(|line| line.chars().count() < 200), "{elsewhere}");
}

#[test]
fn a_device_without_an_end_is_no_configuration() {
    let told = Config::load(Path::new("/dev/zero")).expect_err("it has no end").to_string();
    assert!(told.contains("more than 16MiB") && told.contains("name the configuration"), "{told}");
}

#[test]
fn what_is_proposed_for_a_number_is_what_stands_there() {
    for (written, wanted) in [
        ("\"7\"", "write weight = 7"),
        ("2.9", "write weight = 2"),
        ("nan", "write a number from 0 to 1000, without quotes"),
        ("\"seven\"", "write a number from 0 to 1000, without quotes"),
        ("\"-1\"", "write a number from 0 to 1000, without quotes"),
        ("true", "write a number from 0 to 1000, without quotes"),
    ] {
        let lines = format!("[[service.server]]\naddress = \"10.0.0.1\"\nweight = {written}\n");
        let errors = Config::parse("x", &service(&lines)).expect_err("it is wrong").to_string();
        assert!(errors.contains(wanted), "{written}: {errors}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in r"(?s).{0,400}") {
        drop(Config::parse("x", &text).map_err(|errors| errors.to_string()));
    }

    /// Nearer to what the reader of TOML takes than any characters.
    #[test]
    fn no_syntax_makes_it_panic(text in r#"([\[\]{}=,.:/#"'\\\n\r\té\u{feff}0-9-]|service|gateway|listen|check|\[\[|"""){0,60}"#) {
        drop(Config::parse("x", &text).map_err(|errors| errors.to_string()));
    }

    #[test]
    fn no_damage_makes_it_panic(at in 0usize..2_000, length in 0usize..8, put in r"(?s).{0,4}") {
        let full = include_str!("../../examples/full.toml");
        let mut text: Vec<char> = full.chars().collect();
        let at = at.min(text.len());
        let end = (at + length).min(text.len());
        text.splice(at..end, put.chars());
        let text: String = text.into_iter().collect();
        if let Err(errors) = Config::parse("x", &text) {
            prop_assert!(!errors.0.is_empty());
            prop_assert!(!errors.to_string().is_empty());
        }
    }
}
