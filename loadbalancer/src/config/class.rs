//! `[[service.queue.class]]`: which connections wait in which ring, and for how long.

use std::net::IpAddr;
use std::time::Duration;

use decide::queue::classes::QueueClass;
use ipnet::IpNet;

use super::forms::check_name;
use super::schema::table::{Keys, SlotOf, Table};
use super::schema::value::{At, Given, List, Rejection, Span};
use super::schema::walk::Section;

const LEAST_DEADLINE: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_secs(3_600);
const MOST_LINES: usize = 1_000_000;
/// Room for the lines, with a short comment each.
const MOST_FILE: u64 = 64 << 20;
/// Of the same kind in a class: a list of another form has as many errors as lines.
pub(super) const MOST_TOLD: usize = 10;
/// Characters of a line that are repeated in its error; prefixes are shorter.
const MOST_SHOWN: usize = 60;

#[derive(Clone, Debug)]
pub(super) struct ClassKeys {
    pub name: At<String>,
    priority: u8,
    deadline: Given<Duration>,
    clients: List<At<IpNet>>,
    clients_file: Option<At<String>>,
    /// Prefixes in the file, with their lines.
    in_file: Vec<(IpNet, usize)>,
    pub dscp: List<At<u8>>,
    pub ports: List<At<u16>>,
}

/// Where something of a class stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// Of the value, or of the name of the file.
    pub span: &'a Span,
    /// In the file with clients; zero: it stands in the configuration itself.
    pub line: usize,
}

impl ClassKeys {
    /// In a message: its name may be what is wrong with it.
    pub fn title(&self) -> String {
        let name = &self.name.value;
        if name.is_empty() { "a class without a name".to_owned() } else { format!("class {name}") }
    }

    /// Name of the file with clients.
    pub fn file(&self) -> &str {
        self.clients_file.as_ref().map_or("", |file| &file.value)
    }

    pub fn clients(&self) -> impl Iterator<Item = (IpNet, Origin<'_>)> {
        let in_file = self
            .clients_file
            .iter()
            .flat_map(|file| self.in_file.iter().map(|(net, line)| (*net, Origin { span: &file.span, line: *line })));
        placed(&self.clients).chain(in_file)
    }

    pub fn document(self) -> QueueClass {
        let in_file = self.in_file.into_iter().map(|(net, _)| net);
        QueueClass {
            name: self.name.value,
            ring: self.priority - 1,
            deadline: self.deadline.value,
            clients: self.clients.into_values().into_iter().chain(in_file).collect(),
            dscp: self.dscp.into_values(),
            ports: self.ports.into_values(),
        }
    }
}

/// Values that stand in the configuration itself.
pub(super) fn placed<T: Copy>(list: &List<At<T>>) -> impl Iterator<Item = (T, Origin<'_>)> {
    list.all.iter().map(|at| (at.value, Origin { span: &at.span, line: 0 }))
}

/// With the deadline and the target of the service.
pub(super) fn table(deadline: Duration, target: Duration) -> Table<ClassKeys> {
    let usual = ClassKeys {
        name: At::default(),
        priority: 1,
        deadline: Given::default_of(deadline),
        clients: List::default(),
        clients_file: None,
        in_file: Vec::new(),
        dscp: List::default(),
        ports: List::default(),
    };
    let doc = "Connections that wait in a ring of their own. Of a connection the client's prefix decides (the longest of all \
               classes), else DSCP, else destination port.";
    let keys = Keys::new("[[service.queue.class]]", doc, usual)
        .optional()
        .string("name", |it| &mut it.name, "gold", "In reports.")
        .required("name = \"gold\"");
    let keys = priority_key(keys, |it| &mut it.priority, "Its ring: 1 (most urgent) to 5.")
        .required("priority = 1, the most urgent, to 5");
    deadline_key(keys, |it| &mut it.deadline, "How long they wait at most. Without: the service's.")
        .texts("clients", |it| &mut it.clients, prefix, "10.1.0.0/16", "Prefixes of their clients.")
        .shown("[\"198.51.100.0/24\"]")
        .string(
            "clients_file",
            |it| &mut it.clients_file,
            "gold.txt",
            "File with more of them, one a line; a relative path leads from the configuration.",
        )
        .numbers::<u8>("dscp", |it| &mut it.dscp, 0..=63, "[46]", "Their DSCP.")
        .numbers::<u16>("ports", |it| &mut it.ports, 1..=65_535, "[443]", "Their destination ports.")
        .shown("[80]")
        .build(move |section, it| Some(build(section, it, target)))
}

fn build(section: &Section<'_, '_>, mut it: ClassKeys, target: Duration) -> ClassKeys {
    if !it.name.span.is_empty() {
        check_name(section, &it.name, "class");
    }
    it.name = it.name.or_at(&section.span);
    if it.deadline.span.is_some() && it.deadline.value <= target {
        before_overload(section, "deadline");
    }
    if let Some(name) = &it.clients_file {
        it.in_file = read_clients(section, name);
    }
    let says = |key: &&str| section.has(key) && !section.is_empty_list(key);
    if !["clients", "clients_file", "dscp", "ports"].iter().any(says) {
        let help = "add clients = [\"10.1.0.0/16\"], `clients_file`, dscp = [46] or ports = [443]";
        let message = format!("nothing says which connections are of {}", it.title());
        section.error(it.name.span.clone(), message, help);
    }
    it
}

/// The key `priority`, of a ring.
pub(super) fn priority_key<T: Clone + 'static>(keys: Keys<T>, slot: SlotOf<T, u8>, doc: &'static str) -> Keys<T> {
    keys.number::<u8>("priority", slot, 1..=5, doc)
}

pub(super) fn deadline_key<T: Clone + 'static>(keys: Keys<T>, slot: SlotOf<T, Duration>, doc: &'static str) -> Keys<T> {
    keys.time("deadline", slot, LEAST_DEADLINE..=HOUR, doc)
}

pub(super) fn before_overload(section: &Section<'_, '_>, key: &str) {
    let help = "make `deadline` longer, or `target` of [service.queue] shorter: else no connection waits long enough \
                to show a standing overload";
    section.error(section.value_span(key), "`deadline` is not longer than `target`", help);
}

fn prefix(text: &str) -> Result<IpNet, Rejection> {
    let Ok(net) = text.parse::<IpNet>() else {
        return Err(match text.parse::<IpAddr>() {
            Ok(addr) => {
                (format!("`{text}` has no length"), format!("write \"{}\" for this address alone", IpNet::from(addr)))
            }
            Err(_) => (
                format!("`{text}` is no prefix"),
                "write ADDRESS/LENGTH, such as \"10.1.0.0/16\" or \"2001:db8::/32\"".to_owned(),
            ),
        });
    };
    if net.trunc() != net {
        let message = format!("`{text}` has bits set beyond its length");
        let alone = IpNet::from(net.addr());
        return Err((message, format!("write \"{}\", or \"{alone}\" for this address alone", net.trunc())));
    }
    Ok(net)
}

/// One prefix per line; what follows a `#` is a comment.
fn read_clients(section: &Section<'_, '_>, name: &At<String>) -> Vec<(IpNet, usize)> {
    let reject = |message: String, help: &str| section.error(name.span.clone(), message, help);
    let mut found = Vec::new();
    let bytes = match section.files().read(&name.value, MOST_FILE) {
        Ok(bytes) => bytes,
        Err((message, help)) => {
            reject(message, &help);
            return found;
        }
    };
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            let message = format!("line {line} of {} is no UTF-8 text", name.value);
            reject(message, "write one prefix per line, such as 10.1.0.0/16");
            return found;
        }
    };
    let mut wrong = 0;
    for (number, line) in (1..).zip(text.lines()) {
        if number > MOST_LINES {
            reject(format!("{} has more than {MOST_LINES} lines", name.value), "merge prefixes into shorter ones");
            break;
        }
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match line.parse::<IpNet>() {
            Ok(net) if net == net.trunc() => found.push((net, number)),
            _ => {
                wrong += 1;
                let shown: String = line.chars().take(MOST_SHOWN).collect();
                if wrong <= MOST_TOLD
                    && let Err((message, help)) = prefix(&shown)
                {
                    reject(format!("line {number} of {}: {message}", name.value), &help);
                }
            }
        }
    }
    if wrong > MOST_TOLD {
        let message = format!("{} more lines of {} are wrong", wrong - MOST_TOLD, name.value);
        reject(message, "mend those that are told first");
    }
    found
}
