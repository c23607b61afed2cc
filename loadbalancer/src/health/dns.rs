//! The DNS probe: a query over UDP.

use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use super::error::ProbeError;
use super::probe::TimeLimit;
use super::socket;
use super::spec::{CheckSpec, SpecError};
use super::udp;

/// What a server may answer without fragments (DNS flag day 2020).
const PAYLOAD: u16 = 1_232;
/// Datagrams that are read while none is the answer.
const MOST_DATAGRAMS: usize = 16;

const TYPES: [RecordType; 10] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::CNAME,
    RecordType::MX,
    RecordType::NS,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::SRV,
    RecordType::TXT,
    RecordType::ANY,
];

/// IANA's names of response codes.
const CODES: [(&str, ResponseCode); 7] = [
    ("NOERROR", ResponseCode::NoError),
    ("NXDOMAIN", ResponseCode::NXDomain),
    ("REFUSED", ResponseCode::Refused),
    ("SERVFAIL", ResponseCode::ServFail),
    ("FORMERR", ResponseCode::FormErr),
    ("NOTIMP", ResponseCode::NotImp),
    ("NOTAUTH", ResponseCode::NotAuth),
];

/// A query, and the response code of a good answer. With NOERROR there must be a record as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsCheck {
    name: Name,
    record: RecordType,
    code: ResponseCode,
}

impl DnsCheck {
    /// `name` is taken as complete, with or without the final dot.
    ///
    /// # Errors
    /// The first argument that is not one.
    pub fn new(name: &str, record: &str, code: &str) -> Result<Self, SpecError> {
        let mut parsed = Name::from_ascii(name).map_err(|_| SpecError::Query(name.to_owned()))?;
        if name.is_empty() {
            return Err(SpecError::Query(String::new()));
        }
        parsed.set_fqdn(true);
        let wanted = RecordType::from_str(&record.to_ascii_uppercase()).ok().filter(|wanted| TYPES.contains(wanted));
        let code = CODES
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(code))
            .ok_or_else(|| SpecError::ResponseCode(code.to_owned()));
        Ok(Self {
            name: parsed,
            record: wanted.ok_or_else(|| SpecError::RecordType(record.to_owned()))?,
            code: code?.1,
        })
    }

    fn query(&self, id: u16) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(self.name.clone(), self.record));
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD);
        message.set_edns(edns);
        message
    }

    /// None: it is the answer to something else.
    fn judge(&self, id: u16, datagram: &[u8]) -> Option<Result<(), ProbeError>> {
        // A header that cannot be read could be of any query.
        let Ok(answer) = Message::from_vec(datagram) else {
            return datagram.starts_with(&id.to_be_bytes()).then_some(Err(ProbeError::NotDns));
        };
        if answer.metadata.id != id || answer.metadata.message_type != MessageType::Response {
            return None;
        }
        // An error may come without the question (RFC 1035, section 4.1.1: format error).
        let asked = |query: &Query| *query.name() == self.name && query.query_type() == self.record;
        if !answer.queries.iter().all(asked) {
            return None;
        }
        let code = answer.metadata.response_code;
        Some(if code != self.code {
            Err(ProbeError::DnsCode { code: name_of(code), expected: name_of(self.code) })
        } else if code == ResponseCode::NoError && answer.answers.is_empty() && !answer.metadata.truncation {
            Err(ProbeError::NoRecord(self.record.to_string()))
        } else {
            Ok(())
        })
    }
}

fn name_of(code: ResponseCode) -> String {
    let known = CODES.iter().find(|(_, known)| *known == code);
    known.map_or_else(|| u16::from(code).to_string(), |(name, _)| (*name).to_owned())
}

/// Asks, and judges the answer.
pub(super) async fn ask(spec: &CheckSpec, check: &DnsCheck, limit: &TimeLimit) -> Result<(), ProbeError> {
    let socket = socket::datagrams(spec).await?;
    let id = RandomState::new().hash_one(spec.target) as u16;
    let query = check.query(id).to_vec().map_err(|error| ProbeError::Other(error.to_string()))?;
    let mut datagram = udp::exchange(&socket, &query, limit).await?;
    for _ in 1..MOST_DATAGRAMS {
        if let Some(verdict) = check.judge(id, &datagram) {
            return verdict;
        }
        datagram = udp::receive(&socket, limit).await?;
    }
    check.judge(id, &datagram).unwrap_or(Err(ProbeError::NotDns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record};
    use proptest::prelude::*;

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
        let wrong = |code: &str, expected: &str| {
            Some(Err(ProbeError::DnsCode { code: code.into(), expected: expected.into() }))
        };
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
}
