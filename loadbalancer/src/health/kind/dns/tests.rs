//! DNS checks, some of servers on loopback.

use std::net::Ipv4Addr;

use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use proptest::prelude::*;

use super::*;
use crate::health::CheckKind;
use crate::health::error::Phase;
use crate::health::loopback::{IMPATIENT, PATIENT, datagrams, probe, spec};

fn check(code: &str) -> DnsCheck {
    DnsCheck::new("www.example", "a", code).unwrap()
}

fn answer(code: ResponseCode, records: usize) -> Message {
    let mut message = check("NOERROR").query(7).into_response();
    message.metadata.response_code = code;
    for _ in 0..records {
        let data = RData::A(A::new(192, 0, 2, 1));
        message.add_answer(Record::from_rdata(check("NOERROR").name, 60, data));
    }
    message
}

#[test]
fn what_can_be_asked_is_taken_and_the_rest_refused_by_name() {
    for (name, record, code) in
        [("www.example", "A", "NOERROR"), (".", "ns", "noerror"), ("_sip._udp.a.example.", "SRV", "NXDOMAIN")]
    {
        assert!(DnsCheck::new(name, record, code).is_ok(), "{name} {record} {code}");
    }
    let long = "a".repeat(64);
    for (name, record, code, error) in [
        ("", "A", "NOERROR", SpecError::Query("".into())),
        ("a..b", "A", "NOERROR", SpecError::Query("a..b".into())),
        (&long, "A", "NOERROR", SpecError::Query(long.clone())),
        ("a", "AXFR", "NOERROR", SpecError::RecordType("AXFR".into())),
        ("a", "", "NOERROR", SpecError::RecordType("".into())),
        ("a", "A", "OK", SpecError::ResponseCode("OK".into())),
    ] {
        assert_eq!(DnsCheck::new(name, record, code), Err(error));
    }
}

#[test]
fn answers_are_judged_by_code_and_records() {
    let wrong =
        |code: &str, expected: &str| Some(Err(ProbeError::DnsCode { code: code.into(), expected: expected.into() }));
    let mut truncated = answer(ResponseCode::NoError, 0);
    truncated.metadata.truncation = true;
    let mut of_another = answer(ResponseCode::NoError, 1);
    of_another.metadata.id = 8;
    let mut of_another_name = answer(ResponseCode::NoError, 1);
    of_another_name.queries[0].set_name(Name::root());
    let mut without_question = answer(ResponseCode::FormErr, 0);
    without_question.queries.clear();
    for (case, code, message, verdict) in [
        ("a record", "NOERROR", answer(ResponseCode::NoError, 1), Some(Ok(()))),
        ("no record", "NOERROR", answer(ResponseCode::NoError, 0), Some(Err(ProbeError::NoRecord("A".into())))),
        ("too much for a datagram", "NOERROR", truncated, Some(Ok(()))),
        ("no such name", "NOERROR", answer(ResponseCode::NXDomain, 0), wrong("NXDOMAIN", "NOERROR")),
        ("no such name, as expected", "NXDOMAIN", answer(ResponseCode::NXDomain, 0), Some(Ok(()))),
        ("code 9", "NOERROR", answer(ResponseCode::NotZone, 0), wrong("10", "NOERROR")),
        ("another id", "NOERROR", of_another, None),
        ("another name", "NOERROR", of_another_name, None),
        ("the query itself", "NOERROR", check("NOERROR").query(7), None),
        ("an error without the question", "NOERROR", without_question, wrong("FORMERR", "NOERROR")),
    ] {
        assert_eq!(check(code).judge(7, &message.to_vec().unwrap()), verdict, "{case}");
    }
    assert_eq!(check("NOERROR").judge(7, b"\0\x07nonsense"), Some(Err(ProbeError::NotDns)));
    assert_eq!(check("NOERROR").judge(7, b"nonsense"), None);
}

proptest! {
    #[test]
    fn no_datagram_makes_it_panic(mut datagram in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..60, put: u8) {
        drop(check("NOERROR").judge(7, &datagram));
        // Nearer to what is taken.
        datagram = answer(ResponseCode::NoError, 1).to_vec().unwrap();
        let at = at % datagram.len();
        datagram[at] = put;
        drop(check("NOERROR").judge(7, &datagram));
    }
}

#[tokio::test]
async fn dns_queries_are_answered_or_not() {
    let check = || CheckKind::Dns(DnsCheck::new("www.example", "A", "NOERROR").unwrap());
    let header = |code: u8, records: u8| [b"ID", &[0x81, code, 0, 0, 0, records, 0, 0, 0, 0][..]].concat();
    let record = [header(0, 1), vec![0, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]].concat();
    let nonsense = || vec![b"nonsense".to_vec(); 40];
    let refused = ProbeError::DnsCode { code: "REFUSED".into(), expected: "NOERROR".into() };
    for (case, answers, expected) in [
        ("a record", vec![record.clone()], Ok(())),
        ("after nonsense", vec![b"nonsense".to_vec(), vec![], record], Ok(())),
        ("no record", vec![header(0, 0)], Err(ProbeError::NoRecord("A".into()))),
        ("refused", vec![header(5, 0)], Err(refused)),
        ("records announced, none there", vec![header(0, 255)], Err(ProbeError::NotDns)),
        ("nonsense only", nonsense(), Err(ProbeError::NotDns)),
    ] {
        let target = datagrams(Ipv4Addr::LOCALHOST.into(), answers).await;
        assert_eq!(probe(&spec(target, check(), PATIENT)).await.map(|_| ()), expected, "{case}");
    }
    let echo = datagrams(Ipv4Addr::LOCALHOST.into(), vec![b"echo".to_vec()]).await;
    let waits = ProbeError::TimedOut { after: IMPATIENT, phase: Phase::Wait };
    assert_eq!(probe(&spec(echo, check(), IMPATIENT)).await, Err(waits), "the query itself is no answer");
}
