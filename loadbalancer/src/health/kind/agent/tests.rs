//! Agents on loopback.

use std::time::Duration;

use super::*;
use crate::health::loopback::{IMPATIENT, PATIENT, answering, probe, server, spec};
use crate::health::{AgentAdmin, CheckKind};

#[tokio::test]
async fn agents_are_understood_or_told() {
    let line = |send: Option<&str>| CheckKind::Agent(AgentCheck::Line { send: send.map(str::to_owned) });
    let saying = |text: &'static [u8]| server(move |mut stream| async move { stream.write_all(text).await.unwrap() });
    let unknown = |unknown: &str| Err(ProbeError::EmptyReport { unknown: unknown.into() });
    for (text, expected) in [
        (&b"up 75%\n"[..], Ok("up 75%")),
        (b"down # disk full\r\nmore\n", Ok("down # disk full")),
        (b"drain\r", Ok("drain")),
        (b"\n", unknown("")),
        (b"hello \xff\n", unknown("hello \u{fffd}")),
        // What ends without a line may be half a word.
        (b"maxconn:10", Err(ProbeError::ClosedEarly)),
        (b"", Err(ProbeError::ClosedEarly)),
    ] {
        let result = probe(&spec(saying(text).await, line(None), PATIENT)).await;
        let report = result.map(|answer| *answer.report.expect("an agent reports"));
        assert_eq!(report, expected.map(AgentReport::from_line), "{text:?}");
    }
    let endless = server(|mut stream| async move { while stream.write_all(&[b'u'; 1_000]).await.is_ok() {} }).await;
    assert_eq!(probe(&spec(endless, line(None), PATIENT)).await, Err(ProbeError::LineTooLong));
    let asking = server(|mut stream| async move {
        let mut question = [0; 8];
        stream.read_exact(&mut question).await.unwrap();
        stream.write_all(if &question == b"web/web1" { b"ready\n" } else { b"what\n" }).await.unwrap();
    })
    .await;
    let answer = probe(&spec(asking, line(Some("web/web1")), PATIENT)).await.unwrap();
    assert_eq!(answer.report.and_then(|report| report.admin), Some(AgentAdmin::Ready));
    let waits = ProbeError::TimedOut { after: IMPATIENT, phase: Phase::Wait };
    assert_eq!(probe(&spec(asking, line(None), IMPATIENT)).await, Err(waits));
}

#[tokio::test]
async fn agents_may_speak_json() {
    let check = || CheckKind::Agent(AgentCheck::json("/load", None).unwrap());
    let answer =
        |status: &str, body: &str| format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let huge = format!("{{\"cpu\": 0.5, \"text\": \"{}\"}}", "x".repeat(40_000));
    for (case, answer, expected) in [
        ("all well", answer("200 OK", r#"{"cpu": 0.5, "in_flight": 3}"#), Ok((Some(0.5), Some(3)))),
        ("no JSON", answer("200 OK", "up"), Err(ProbeError::NotJson)),
        ("nothing known", answer("200 OK", "{\"cpu\": 9}"), Err(ProbeError::EmptyReport { unknown: "cpu=9".into() })),
        ("too much", answer("200 OK", &huge), Err(ProbeError::NotJson)),
        (
            "an error",
            answer("404 Not Found", "{\"cpu\": 0.5}"),
            Err(ProbeError::Status { status: 404, expected: "200-299".into() }),
        ),
    ] {
        let result = probe(&spec(answering(answer).await, check(), PATIENT)).await;
        let report = result.map(|answer| answer.report.map(|report| (report.cpu, report.in_flight)).expect("a report"));
        assert_eq!(report, expected, "{case}");
    }
}

#[tokio::test]
async fn an_agent_that_speaks_first_is_not_kept_waiting() {
    // The kernel holds back the end of a handshake by 40 ms where it may, and the agent would not see the connection.
    let target = server(|mut stream| async move { stream.write_all(b"up\n").await.unwrap() }).await;
    let mut quickest = PATIENT;
    // One will do: others may have been kept waiting by a busy machine.
    for _ in 0..500 {
        let check = CheckKind::Agent(AgentCheck::Line { send: None });
        quickest = quickest.min(probe(&spec(target, check, PATIENT)).await.unwrap().latency);
        if quickest < Duration::from_millis(30) {
            return;
        }
    }
    panic!("the quickest took {quickest:?}");
}
