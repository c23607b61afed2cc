//! What people are told when something is wrong.

use std::process::{Command, Output, Stdio};

use libtest_mimic::Trial;
use loadbalancer_tests::lab::Lab;
use loadbalancer_tests::lab::gateway::{Gateway, GatewayError, command};
use loadbalancer_tests::lab::plan::LabConfig;
use nix::sys::signal::Signal;

use super::world::Setup;

pub fn trials() -> Vec<Trial> {
    trials![
        a_missing_interface_is_named,
        an_occupied_interface_is_named_with_its_program,
        a_second_controller_is_refused,
        pins_belong_to_one_controller,
        a_start_or_reload_that_fails_changes_nothing,
        a_port_in_use_is_named,
        pinned_state_of_another_size_is_refused_or_replaced_as_told,
        pins_that_cannot_be_made_are_told,
        a_kernel_without_btf_is_told_and_does,
        without_root_the_way_out_is_told,
        commands_without_a_controller_say_how_to_start_one,
        a_server_that_does_not_exist_is_told_and_ambiguous_names_are_listed,
        tables_and_completions_are_printed,
        the_doctor_finds_what_is_wrong_and_says_how_to_mend_it,
    ]
}

const SERVICE: &str =
    "[[service]]\nname = \"web\"\nlisten = [\"192.0.2.1:80\"]\n[[service.server]]\naddress = \"10.77.101.2\"\n";

fn lab() -> Lab {
    Lab::up(&LabConfig { clients: 1, servers: 1, ..LabConfig::default() }).unwrap_or_else(|error| panic!("{error}"))
}

/// What a gateway says that does not start.
fn refusal(lab: &Lab, keys: &str, services: &str) -> String {
    match Gateway::start_with(lab, keys, services) {
        Err(GatewayError::Ended { log, .. }) => log,
        Ok(gateway) => panic!("it started:\n{}", gateway.log()),
        Err(error) => panic!("{error}"),
    }
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn a_missing_interface_is_named() {
    let lab = lab();
    let text = refusal(&lab, "interfaces = [\"client1\", \"eth7\"]", SERVICE);
    has(&text, &["there is no interface eth7", "`ip link` lists them"]);
    assert!(!lab.run().pin_dir().exists(), "nothing is left of it");
}

fn an_occupied_interface_is_named_with_its_program() {
    let lab = lab();
    let end = loadbalancer_tests::lab::xdp::attach_xdp_pass(&lab.gateway.namespace, "server1").expect("attached");
    let text = refusal(&lab, "interfaces = [\"client1\", \"server1\"]", SERVICE);
    has(&text, &["interface server1 already runs an XDP program: lab_receive (id", "ip link set dev server1 xdp off"]);
    drop(end);
}

fn a_second_controller_is_refused() {
    let world = Setup::new("nat").up();
    let output = world.gateway.cli(&["run", "--config", &world.gateway.config.display().to_string()]);
    assert_eq!(output.status.code(), Some(1));
    has(&stderr(&output), &["another controller answers on", "stop it first"]);
    world.requests(loadbalancer_tests::lab::vip4(1).into(), 10);
}

fn pins_belong_to_one_controller() {
    let mut world = Setup::new("nat").up();
    let (vip, pins) = (loadbalancer_tests::lab::vip4(1).into(), world.gateway.pins.display().to_string());
    let text = std::fs::read_to_string(&world.gateway.config).expect("read");
    let other = world.gateway.config.with_file_name("other.toml");
    std::fs::write(&other, text.replace("admin.sock", "other.sock")).expect("written");
    let (other, told) = (other.display().to_string(), "a running controller keeps its state in");
    for arguments in [&["run", "--config", &other][..], &["detach", "--pins", &pins]] {
        let output = world.gateway.cli(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        has(&stderr(&output), &[told, "stop it first"]);
        world.requests(vip, 10);
    }
    world.gateway.stop(Signal::SIGTERM);
    world.requests_without_controller(vip, 10);
    let output = world.gateway.cli(&["detach", "--pins", &pins]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!world.gateway.pins.exists());
    let directory = world.gateway.config.parent().expect("it has one").display().to_string();
    let output = world.gateway.cli(&["detach", "--pins", &directory]);
    assert_eq!(output.status.code(), Some(1));
    has(&stderr(&output), &["is not on a BPF file system, so there are no pins"]);
    assert!(world.gateway.config.exists(), "nothing was removed");
}

/// Neither a wrong file nor a wrong name takes away what an earlier controller has left.
fn a_start_or_reload_that_fails_changes_nothing() {
    let mut world = Setup::new("nat").up();
    let vip = loadbalancer_tests::lab::vip4(1).into();
    let text = std::fs::read_to_string(&world.gateway.config).expect("read");
    let wrong = [
        (text.replace("[gateway]", "[gateway]\nvip_interface = \"gone0\""), "correct `vip_interface` in [gateway]"),
        (text.replace("\"client1\"", "\"gone0\""), "there is no interface gone0"),
    ];
    for (file, told) in &wrong {
        std::fs::write(&world.gateway.config, file).expect("written");
        let output = world.gateway.cli(&["reload", "--socket", &world.gateway.socket.display().to_string()]);
        assert_eq!(output.status.code(), Some(1));
        has(&stderr(&output), &[told]);
        world.requests(vip, 10);
    }
    world.gateway.stop(Signal::SIGKILL);
    for (file, told) in &wrong {
        std::fs::write(&world.gateway.config, file).expect("written");
        match world.gateway.spawn() {
            Err(GatewayError::Ended { log, .. }) => has(&log, &[told]),
            other => panic!("{other:?}"),
        }
        world.requests_without_controller(vip, 10);
    }
    let lab = lab();
    has(&refusal(&lab, "interfaces = [\"client1\"]\nvip_interface = \"gone0\"", SERVICE), &[wrong[0].1]);
    assert!(!lab.run().pin_dir().exists(), "nothing is left of it");
}

fn a_port_in_use_is_named() {
    let lab = lab();
    let taken = lab.gateway.namespace.run(|| std::net::TcpListener::bind("127.0.0.1:9077")).expect("entered");
    let taken = taken.expect("bound");
    let text = refusal(&lab, "interfaces = [\"client1\"]", &format!("[metrics]\n{SERVICE}"));
    has(&text, &["cannot serve metrics on 127.0.0.1:9077", "choose another `listen` in [metrics]"]);
    drop(taken);
}

fn pinned_state_of_another_size_is_refused_or_replaced_as_told() {
    let mut world = Setup::new("nat").up();
    world.gateway.stop(Signal::SIGTERM);
    let text = std::fs::read_to_string(&world.gateway.config).expect("read");
    std::fs::write(&world.gateway.config, text.replace("flows = 100000\nnat", "flows = 400000\nnat")).expect("written");
    match world.gateway.spawn() {
        Err(GatewayError::Ended { log, .. }) => {
            has(&log, &["has another layout or size: map AFFINITY has", "on_incompatible = \"replace\""]);
        }
        other => panic!("{other:?}"),
    }
    let text = std::fs::read_to_string(&world.gateway.config).expect("read");
    std::fs::write(&world.gateway.config, text.replace("[gateway]", "[gateway]\non_incompatible = \"replace\""))
        .expect("written");
    world.gateway.spawn().unwrap_or_else(|error| panic!("{error}"));
    world.requests(loadbalancer_tests::lab::vip4(1).into(), 10);
}

fn pins_that_cannot_be_made_are_told() {
    let lab = lab();
    let gateway = Gateway::prepare(&lab, "interfaces = [\"client1\"]", SERVICE).expect("prepared");
    let cases = [
        (
            "mount -t bpf bpf /sys/fs/bpf && mount -o remount,ro /sys/fs/bpf",
            "Read-only file system",
            "help: make the BPF file system writable (`mount -o remount,rw`)",
        ),
        (
            // Room for its root directory only.
            "mount -t bpf bpf /sys/fs/bpf && mkdir -p PINS && mount -t tmpfs -o nr_inodes=1 none PINS",
            "No space left on device",
            "help: pins need a BPF file system, which is never full; `findmnt --target",
        ),
    ];
    for (mount, why, help) in cases {
        // In a mount namespace of its own.
        let script = format!(
            "mount --make-rprivate / && {} && exec {} run --config {}",
            mount.replace("PINS", &gateway.pins.display().to_string()),
            loadbalancer_tests::lab::gateway::binary().display(),
            gateway.config.display()
        );
        let unshare = ["--mount", "sh", "-c", &script];
        let output = lab.gateway.namespace.command("unshare").args(unshare).output().expect("unshare runs");
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        has(&text, &["cannot create", why, help]);
        assert_eq!(text.matches(why).count(), 1, "{text}");
    }
}

fn a_kernel_without_btf_is_told_and_does() {
    let lab = lab();
    let gateway =
        Gateway::prepare(&lab, "interfaces = [\"client1\"]\non_stop = \"remove\"", SERVICE).expect("prepared");
    let without_btf = |command: &str| {
        let script = format!(
            "mount --make-rprivate / && mount -t tmpfs none /sys/kernel/btf && {}",
            command
                .replace("BINARY", &loadbalancer_tests::lab::gateway::binary().display().to_string())
                .replace("CONFIG", &gateway.config.display().to_string())
        );
        lab.gateway.namespace.command("unshare").args(["--mount", "sh", "-c", &script]).output().expect("unshare runs")
    };
    let doctor = without_btf("BINARY doctor --config CONFIG");
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    has(&text, &["the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)", "the gateway works without"]);
    // It is told to stop when it forwards, or after a minute.
    let run = without_btf(
        "{ BINARY run --config CONFIG 2>CONFIG.log & for _ in $(seq 600); do grep -q 'the gateway forwards' CONFIG.log && break; \
         sleep 0.1; done; kill -TERM $!; wait $!; code=$?; cat CONFIG.log >&2; exit $code; }",
    );
    assert_eq!(run.status.code(), Some(0), "{}", stderr(&run));
    has(&stderr(&run), &["the gateway forwards"]);
}

fn without_root_the_way_out_is_told() {
    let lab = lab();
    let gateway = Gateway::prepare(&lab, "interfaces = [\"client1\"]", SERVICE).expect("prepared");
    let config = std::env::temp_dir().join(format!("loadbalancer-{}.toml", lab.run().id()));
    std::fs::copy(&gateway.config, &config).expect("copied");
    let binary = std::env::temp_dir().join(format!("loadbalancer-{}", lab.run().id()));
    std::fs::copy(loadbalancer_tests::lab::gateway::binary(), &binary).expect("copied");
    let as_nobody = |arguments: &[&str]| {
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&binary)
            .args(arguments)
            .output()
            .expect("setpriv is there")
    };
    let path = config.display().to_string();
    let run = as_nobody(&["run", "--config", &path]);
    let check = as_nobody(&["check", &path]);
    std::fs::remove_file(&config).expect("removed");
    std::fs::remove_file(&binary).expect("removed");
    assert_eq!(run.status.code(), Some(1));
    has(&stderr(&run), &["running a gateway needs root", "sudo"]);
    assert!(check.status.success(), "{}", stderr(&check));
}

fn commands_without_a_controller_say_how_to_start_one() {
    for arguments in [&["status", "--pins", "/sys/fs/bpf/no-such-gateway"][..], &["backend", "drain", "x"], &["reload"]]
    {
        let output = command()
            .args(arguments)
            .args(["--socket", "/run/no-such-gateway.sock"])
            .stdin(Stdio::null())
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        has(&stderr(&output), &["no controller answers on /run/no-such-gateway.sock"]);
    }
}

fn a_server_that_does_not_exist_is_told_and_ambiguous_names_are_listed() {
    let setup = Setup::new("nat");
    let world = setup.clone().up();
    let socket = world.gateway.socket.display().to_string();
    let output = world.gateway.cli(&["backend", "drain", "nobody", "--socket", &socket]);
    assert_eq!(output.status.code(), Some(1));
    has(&stderr(&output), &["there is no server nobody", "`loadbalancer backends` lists them"]);
    let one = setup.services(&world.lab);
    let two = one.replace("\"web\"", "\"second\"").replace("192.0.2.1:", "192.0.2.2:");
    world.gateway.write(&format!("{one}\n{two}")).expect("written");
    world.gateway.reload().expect("reloaded");
    let output = world.gateway.cli(&["backend", "drain", "server1", "--socket", &socket]);
    has(&stderr(&output), &["server1 may be any of web/server1, second/server1"]);
}

fn tables_and_completions_are_printed() {
    let world = Setup::new("nat").check().up();
    for host in &world.lab.servers {
        world.gateway.wait_server(&host.name, "up").unwrap_or_else(|error| panic!("{error}"));
    }
    has(&world.gateway.ask(&["services"]), &["web", "nat", "4/4", "192.0.2.1:80/tcp"]);
    has(&world.gateway.ask(&["backends"]), &["web/server1", "10.77.101.2", "up", "25.0 %"]);
    has(&world.gateway.ask(&["status"]), &["client1: native XDP", "servers      4: 4 up"]);
    has(&world.gateway.ask(&["stats", "--watch", "--count", "2"]), &["FLOWS/s"]);
    for shell in ["bash", "zsh", "fish"] {
        let output = world.gateway.cli(&["completions", shell]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("loadbalancer"), "{shell}");
    }
}

fn the_doctor_finds_what_is_wrong_and_says_how_to_mend_it() {
    let setup = Setup::new("dsr-ipip");
    let mut world = setup.clone().up();
    let config = world.gateway.config.display().to_string();
    let doctor = |world: &super::world::World| {
        let output = world.gateway.cli(&["doctor", "--config", &config, "--json"]);
        let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), findings)
    };
    let graded = |findings: &[serde_json::Value], grade: &str| -> String {
        let lines = findings.iter().filter(|finding| finding["grade"] == grade);
        lines.map(|f| format!("{}: {} -> {}\n", f["subject"], f["finding"], f["mend"])).collect()
    };
    let (code, findings) = doctor(&world);
    assert_eq!((code, graded(&findings, "problem")), (Some(0), String::new()));
    has(&graded(&findings, "good"), &["the kernel's verifier accepts it", "runs loadbalancer (id"]);
    has(&graded(&findings, "warning"), &["its tunnel has room for packets of 1480 bytes", "1520 bytes"]);
    has(&graded(&findings, "note"), &["servers must have the VIP and open the tunnel", "loadbalancer decap"]);

    // What can go wrong, all at once.
    world.gateway.stop(Signal::SIGTERM);
    let gateway = &world.lab.gateway.namespace;
    gateway.sysctl(&[("ipv4/conf/client1/rp_filter", "1"), ("ipv4/ip_forward", "0")]).expect("set");
    gateway.sysctl(&[("ipv4/ip_local_port_range", "20000 60999")]).expect("set");
    gateway.ip(&["link set server1 down", "route add blackhole 10.77.103.2/32"]).expect("changed");
    let devices: Vec<String> = world.lab.gateway.links.iter().map(|link| format!("{:?}", link.device)).collect();
    let text = std::fs::read_to_string(&world.gateway.config).expect("read");
    let text = text.replace(&devices.join(", "), "\"client1\", \"server1\", \"server2\", \"gone0\"");
    let nat = setup
        .services(&world.lab)
        .replace("\"web\"", "\"nat\"")
        .replace("dsr-ipip", "nat")
        .replace("192.0.2.1:", "192.0.2.2:");
    std::fs::write(&world.gateway.config, format!("{text}\n{nat}")).expect("written");
    let (code, findings) = doctor(&world);
    assert_eq!(code, Some(1));
    has(
        &graded(&findings, "problem"),
        &[
            "interface gone0",
            "it does not exist",
            "it is down, or has no carrier",
            "ip link set server1 up",
            "the machine itself uses ports 20000-32767, which are in nat_ports",
            "ip_local_reserved_ports=20000-32767",
            "refuses packets (blackhole)",
            "which is not in `interfaces`: its replies would be missed",
        ],
    );
    has(
        &graded(&findings, "warning"),
        &["strict reverse-path filtering", "net.ipv4.conf.client1.rp_filter=2", "net.ipv4.ip_forward is 0"],
    );
}
