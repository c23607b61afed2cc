//! Every rule has its message, with place and mend; what is right is read as it is meant.

use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::dataplane::kernel::Sizes;

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

/// Text, the text at fault, a part of the message, a part of the mend.
fn refused(cases: &[(&str, &str, &str, &str)]) {
    for (text, fault, message, help) in cases {
        let errors = errors(text);
        let [error] = errors.as_slice() else {
            panic!("{text}\nhas {} errors:\n{}", errors.len(), ConfigErrors(errors));
        };
        assert!(error.message.contains(message), "`{message}` is not in\n{error}\nof\n{text}");
        assert!(error.help.contains(help), "`{help}` is not in\n{error}\nof\n{text}");
        let line = text.lines().nth(error.line - 1).unwrap_or_default();
        let marked: String = line.chars().skip(error.column - 1).collect();
        assert!(marked.starts_with(fault), "`{marked}` is marked instead of `{fault}` in\n{error}");
    }
}

#[test]
fn examples_are_right_and_the_full_one_has_the_defaults() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut modes = Vec::new();
    for entry in std::fs::read_dir(directory).expect("there are examples") {
        let path = entry.expect("listed").path();
        let config = Config::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        modes.extend(config.services.iter().map(|service| service.mode));
        if path.ends_with("full.toml") {
            let minimal = Config::parse("minimal", &service("check = { type = \"http\" }")).expect("it is right");
            assert_eq!(config.gateway, minimal.gateway);
            assert_eq!(config.limits, Sizes::default());
            assert_eq!(config.timeouts, Timeouts::default());
            assert_eq!(config.admin, Admin::default());
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
fn an_error_is_shown_with_its_line() {
    let text = service("mode = \"dsr-12\"");
    let errors = Config::parse("lb.toml", &text).expect_err("the mode is wrong");
    assert_eq!(
        errors.to_string(),
        "error: `dsr-12` is no value for `mode`\n --> lb.toml:6:8\n6 | mode = \"dsr-12\"\n  |        ^^^^^^^^\n  = help: choose one \
         of \"nat\", \"dnat\", \"dsr-l2\", \"dsr-ipip\", \"dsr-gue\""
    );
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
            "service  has no servers",
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
fn wrong_keys_and_values_are_told() {
    refused(&[
        ("[gateway\n", "", "unclosed table", "toml.io"),
        ("[[service]]\nname = \"a\"\nname = \"b\"\n", "name = \"b\"", "duplicate key", "toml.io"),
        ("", "", "the configuration has no `gateway`", "interfaces = [\"eth0\"]"),
        ("[gateway]\n", "gateway", "[gateway] has no `interfaces`", "add interfaces"),
        ("[gateway]\ninterfaces = []\n", "[]", "`interfaces` is empty", "name one at least"),
        (
            "[gateway]\ninterfaces = [7.5]\n",
            "7.5",
            "`interfaces` is to be a string or a table, not float",
            "interfaces",
        ),
        ("[gateway]\ninterfaces = [\"eth0\", \"eth0\"]\n", "\"eth0\"]", "named twice, first in line 2", "remove one"),
        ("[gateway]\ninterfaces = [\"eth/0\"]\n", "\"eth/0\"", "no name of an interface", "`ip link` shows"),
        (
            "[gateway]\ninterfaces = [{ name = \"eth0\", xdp = \"fast\" }]\n",
            "\"fast\"",
            "no value for `xdp`",
            "\"native\"",
        ),
        ("[gateway]\ninterfaces = [{ xdp = \"native\" }]\n", "{", "`interfaces` has no `name`", "name = \"eth0\""),
        (
            "[gateway]\ninterface = \"eth0\"\ninterfaces = [\"eth0\"]\n",
            "interface",
            "unknown key",
            "did you mean `interfaces`?",
        ),
        (
            "[gateway]\ninterfaces = [\"eth0\"]\npin_directory = \"/tmp\"\n",
            "\"/tmp\"",
            "cannot hold pins",
            "/sys/fs/bpf",
        ),
        ("[gateway]\ninterfaces = [\"eth0\"]\nhash_seed = 0\n", "0", "`hash_seed` is out of range", "from 1 to"),
        (
            "[gateway]\ninterfaces = [\"eth0\"]\n[limit]\nflows = 1\n",
            "limit",
            "unknown key `limit`",
            "did you mean `limits`?",
        ),
        ("[gateway]\ninterfaces = [\"eth0\"]\n[limits]\nflows = 1\n", "1", "`flows` is out of range", "from 1000 to"),
        (
            "[gateway]\ninterfaces = [\"eth0\"]\n[limits]\nflows = \"many\"\n",
            "\"many\"",
            "a whole number, not string",
            "flows =",
        ),
        ("[gateway]\ninterfaces = [\"eth0\"]\n[timeouts]\nudp = \"5\"\n", "\"5\"", "no time", "\"30s\""),
        ("[gateway]\ninterfaces = [\"eth0\"]\n[timeouts]\nudp = \"9h\"\n", "\"9h\"", "out of range", "13 bits"),
        (
            "[gateway]\ninterfaces = [\"eth0\"]\n[admin]\nsocket = \"lb.sock\"\n",
            "\"lb.sock\"",
            "cannot be a socket",
            "absolute",
        ),
        ("[gateway]\ninterfaces = [\"eth0\"]\n[admin]\nmode = \"0999\"\n", "\"0999\"", "no permission bits", "0600"),
        (
            "[gateway]\ninterfaces = [\"eth0\"]\n[metrics]\nlisten = \"9077\"\n",
            "\"9077\"",
            "no address with a port",
            "127.0.0.1",
        ),
    ]);
}

#[test]
fn wrong_services_are_told() {
    let cases = [
        ("name = \"a b\"", "", "", ""),
        ("gue_port = 6080", "gue_port", "means nothing in mode nat", "mode = \"dsr-gue\""),
        ("nat_ports = \"80-90\"", "\"80-90\"", "at least 64 ports within 1024-65535", "10000-32767"),
        ("nat_source = \"10.0.0.1.1\"", "\"10.0.0.1.1\"", "no address of a host", "an address of the gateway"),
        ("nat_source = [\"10.9.0.1\", \"10.9.0.2\"]", "\"10.9.0.2\"", "second source of the same family", "per family"),
        ("nat_source = \"192.0.2.1\"", "\"192.0.2.1\"", "is the virtual address of line 5", "another address"),
        ("check = { type = \"ping\" }", "\"ping\"", "no value for `type`", "\"tcp\""),
        ("check = { interval = \"1s\" }", "check", "has no `type`", "type = \"tcp\""),
        ("check = { type = \"tcp\", path = \"/\" }", "path", "for HTTP checks only", "type = \"http\""),
        ("check = { type = \"http\", path = \"x\" }", "\"x\"", "not the path of an HTTP check", "starting with /"),
        (
            "check = { type = \"http\", expect = [\"200-99\"] }",
            "\"200-99\"",
            "not a range of final HTTP statuses",
            "200-599",
        ),
        ("check = { type = \"http\", expect = \"ok\" }", "\"ok\"", "no HTTP status", "300-399"),
        ("check = { type = \"tcp\", interval = \"1ms\" }", "\"1ms\"", "out of range", "10ms to 1h"),
        ("check = { type = \"tcp\", rise = 0 }", "0", "`rise` is out of range", "from 1"),
        ("check = { type = \"tcp\", port = 70000 }", "70000", "`port` is out of range", "65535"),
        ("affinity = \"ip\"", "\"ip\"", "no value for `affinity`", "\"client\""),
        ("on_server_down = 1", "1", "is to be a string, not integer", "on_server_down = \"keep\""),
    ];
    for (line, fault, message, help) in &cases[1..] {
        refused(&[(service(line).as_str(), fault, message, help)]);
    }
    for (listen, message, help) in [
        ("192.0.2.1", "no address to listen on", "ADDRESS:PORT"),
        ("192.0.2.1:0", "no address to listen on", "ADDRESS:PORT"),
        ("2001:db8::1:80", "no address to listen on", "[2001:db8::1]"),
        ("192.0.2.1:80/icmp", "no protocol of a service", "tcp or udp"),
        ("127.0.0.1:80", "127.0.0.1 cannot be a virtual address", "unicast"),
        ("224.0.0.1:80", "cannot be a virtual address", "unicast"),
        ("0.0.0.0:80", "cannot be a virtual address", "unicast"),
        ("[fe80::1]:80", "cannot be a virtual address", "unicast"),
    ] {
        let text = format!(
            "{GATEWAY}[[service]]\nname = \"web\"\nlisten = [\"{listen}\"]\n[[service.server]]\naddress = \"10.0.0.1\"\n"
        );
        refused(&[(&text, &format!("\"{listen}\""), message, help)]);
    }
    for (address, message, help) in [
        ("10.0.0", "`10.0.0` is no address", "10.0.0.11:8080"),
        ("10.0.0.1:0", "is no address", "without a port"),
        ("127.0.0.1", "127.0.0.1 cannot be a server", "as the gateway reaches it"),
        ("192.0.2.1", "has the virtual address of line 5", "the server's own address"),
    ] {
        let text = format!(
            "{GATEWAY}[[service]]\nname = \"web\"\nlisten = [\"192.0.2.1:80\"]\n[[service.server]]\naddress = \"{address}\"\n"
        );
        refused(&[(&text, &format!("\"{address}\""), message, help)]);
    }
    refused(&[
        (&service("").replace("\"web\"", "\"a b\""), "\"a b\"", "no name of a service", "letters"),
        (
            &service("").replace("address = \"10.0.0.1\"", "name = \"x\""),
            "[[service.server]]",
            "has no `address`",
            "add address",
        ),
        (&format!("{}weight = 1001\n", service("")), "1001", "`weight` is out of range", "from 0 to 1000"),
        (&format!("{}tier = 4\n", service("")), "4", "`tier` is out of range", "from 0 to 3"),
        (&format!("{}high_water = 0\n", service("")), "0", "`high_water` is out of range", "from 1"),
        (&format!("{}wieght = 2\n", service("")), "wieght", "unknown key", "did you mean `weight`?"),
    ]);
}

#[test]
fn what_clashes_is_told_with_both_places() {
    let one = service("");
    let other = |name: &str, listen: &str, server: &str| {
        format!("[[service]]\nname = \"{name}\"\nlisten = [\"{listen}\"]\n[[service.server]]\naddress = \"{server}\"\n")
    };
    let dnat = service("mode = \"dnat\"");
    refused(&[
        (
            &format!("{one}{}", other("web", "192.0.2.2:80", "10.0.0.2")),
            "\"web\"",
            "there is a service web already, in line 4",
            "a name of its own",
        ),
        (
            &format!("{one}{}", other("two", "192.0.2.1:80/tcp", "10.0.0.2")),
            "\"192.0.2.1:80/tcp\"",
            "192.0.2.1:80/tcp is taken already, by service web in line 5",
            "another port or address",
        ),
        (
            &format!("{one}[[service.server]]\nname = \"again\"\naddress = \"10.0.0.1\"\n"),
            "\"10.0.0.1\"",
            "is a server of this service already, in line 8",
            "a larger weight",
        ),
        (
            &format!("{one}[[service.server]]\nname = \"10.0.0.1\"\naddress = \"10.0.0.2\"\n"),
            "\"10.0.0.2\"",
            "there is a server 10.0.0.1 in this service already, in line 8",
            "a name of its own",
        ),
        (
            &format!("{one}[[service.server]]\naddress = \"fd00::1\"\n"),
            "\"fd00::1\"",
            "server fd00::1 has IPv6, on which service web does not listen",
            "nat keeps a packet's family",
        ),
        (
            &one.replace("\"192.0.2.1:80\"", "\"192.0.2.1:80\", \"[2001:db8::1]:80\""),
            "\"[2001:db8::1]:80\"",
            "service web listens on IPv6, but no server has it",
            "add a server with an IPv6 address",
        ),
        (
            &service("mode = \"dsr-ipip\"").replace("10.0.0.1", "10.0.0.1:8080"),
            "\"10.0.0.1:8080\"",
            "has a port, but dsr-ipip does not rewrite packets",
            "remove the port",
        ),
        (
            &service("check = { type = \"tcp\" }").replace("192.0.2.1:80", "192.0.2.1:*"),
            "check",
            "has no port to ask",
            "add `port`",
        ),
        (
            &format!("{dnat}{}", other("two", "192.0.2.2:80", "10.0.0.1").replace("listen", "mode = \"dnat\"\nlisten")),
            "\"10.0.0.1\"",
            "server 10.0.0.1 stands behind 192.0.2.2:80/tcp and behind 192.0.2.1:80/tcp of service web (line 8)",
            "or use nat",
        ),
        (
            &dnat.replace("\"192.0.2.1:80\"", "\"192.0.2.1:80\", \"192.0.2.2:80\""),
            "\"10.0.0.1\"",
            "stands behind 192.0.2.2:80/tcp and behind 192.0.2.1:80/tcp",
            "a port of its own per VIP",
        ),
        (
            &format!(
                "{GATEWAY}[limits]\nservices = 1\n{}{}",
                &one[GATEWAY.len()..],
                other("two", "192.0.2.2:80", "10.0.0.1")
            ),
            "limits",
            "there are 2 services (one per family in nat and dnat), but room for 1",
            "set services in [limits] higher than 1",
        ),
    ]);
    // An exact port goes before any port, so these two may live together.
    let any = format!("{one}{}", other("rest", "192.0.2.1:*", "10.0.0.2"));
    Config::parse("any", &any).unwrap_or_else(|errors| panic!("{errors}"));
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

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,400}") {
        drop(Config::parse("x", &text));
    }

    #[test]
    fn no_damage_makes_it_panic(at in 0usize..2_000, length in 0usize..8, put in ".{0,4}") {
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
