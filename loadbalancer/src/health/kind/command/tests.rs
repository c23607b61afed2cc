//! Commands, some of which are run.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::health::loopback::{PATIENT, by, probe, spec};
use crate::health::{CheckKind, Via};

#[test]
fn what_cannot_be_run_is_refused() {
    for (command, error) in [
        (&[][..], SpecError::NoCommand),
        (&["check"], SpecError::Command("check".into())),
        (&[""], SpecError::Command("".into())),
        (&["/bin/true", "a\0b"], SpecError::ZeroByte),
    ] {
        assert_eq!(CommandCheck::new(command), Err(error));
    }
}

#[test]
fn the_reason_is_the_first_line_made_fit_for_a_table() {
    for (output, expected) in [
        (&b"disk full\nmore"[..], "disk full"),
        (b"\n \n  disk full \r\n", "disk full"),
        (b"a\x1b[31mred\tb", "a [31mred b"),
        (b"\xff\xfe", "\u{fffd}\u{fffd}"),
        (b"", ""),
    ] {
        assert_eq!(reason(output), expected);
    }
    assert_eq!(reason(&[b'x'; 1_000]).len(), REASON_LIMIT);
}

proptest! {
    #[test]
    fn no_output_makes_it_panic(output in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(reason(&output).chars().count() <= REASON_LIMIT);
    }
}

fn command(script: &str) -> CheckKind {
    CheckKind::Command(CommandCheck::new(&["/bin/sh", "-c", script]).unwrap())
}

#[tokio::test]
async fn commands_are_judged_by_their_end() {
    let target = SocketAddr::from(([127, 0, 0, 1], 8080));
    let ends = |end: &str, reason: &str| Err(ProbeError::Command { end: end.into(), reason: reason.into() });
    for (script, expected) in [
        ("exit 0", Ok(())),
        ("echo fine", Ok(())),
        ("exit 3", ends("exit code 3", "")),
        ("echo; echo disk full; echo more; exit 1", ends("exit code 1", "disk full")),
        ("echo bad >&2; exit 1", ends("exit code 1", "bad")),
        ("kill -9 $$", ends("killed by signal 9", "")),
        (
            "echo $LB_SERVICE $LB_SERVER $LB_ADDRESS $LB_PORT $LB_MARK-$HOME-$LB_SOURCE; exit 1",
            ends("exit code 1", "web web1 127.0.0.1 8080 7--"),
        ),
        ("read line && exit 1; exit 0", Ok(())),
        ("head -c 10000000 /dev/zero; exit 2", ends("exit code 2", &" ".repeat(120))),
        // What it leaves behind holds the pipe open.
        ("sleep 3 & exit 0", Ok(())),
    ] {
        let asked = by(Via { mark: Some(7), ..Via::default() }, spec(target, command(script), PATIENT));
        assert_eq!(probe(&asked).await.map(|_| ()), expected, "{script}");
    }
    let none = CheckKind::Command(CommandCheck::new(&["/no/such/program"]).unwrap());
    let failed = probe(&spec(target, none, PATIENT)).await.expect_err("there is none");
    assert!(failed.is_local());
    assert_eq!(failed.to_string(), "gateway cannot run /no/such/program: No such file or directory (os error 2)");
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_what_it_started() {
    // Each holds the pipe open for as long as it lives.
    let (ours, theirs) = std::io::pipe().unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&theirs));
    let script = format!("exec 9>{path}; echo begun; sleep 100 & sleep 100");
    let target = SocketAddr::from(([127, 0, 0, 1], 8080));
    let patience = Duration::from_millis(500);
    let result = probe(&spec(target, command(&script), patience)).await;
    assert_eq!(result, Err(ProbeError::TimedOut { after: patience, phase: Phase::Run }));
    drop(theirs);
    // It ends when nobody has the other end any more.
    let mut ours = tokio::net::unix::pipe::Receiver::from_owned_fd(ours.into()).unwrap();
    let end = tokio::time::timeout(PATIENT, ours.read(&mut [0])).await.expect("all of them are gone");
    assert_eq!(end.unwrap(), 0);
}
