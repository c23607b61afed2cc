//! The DNS check: a query over UDP.

use std::str::FromStr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use super::udp;
use crate::health::error::{ProbeError, SpecError};
use crate::health::limit::TimeLimit;
use crate::health::socket::Sockets;
use crate::health::target::Target;

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
pub(in crate::health) async fn ask(
    target: &Target,
    check: &DnsCheck,
    sockets: &Sockets,
    limit: &TimeLimit,
) -> Result<(), ProbeError> {
    let socket = sockets.datagrams(target).await?;
    let id = getrandom::u64().map_err(|_| ProbeError::OutOf("random numbers"))? as u16;
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
mod tests;
