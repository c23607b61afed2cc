//! `[queue]`, what the queues of all services share, and `[service.queue]`, how connections wait while no server may
//! take them.

use std::time::Duration;

use super::classes::{self, ClassPlaces, Classes};
use super::error::Errors;
use super::files::Files;
use super::model::{Protocol, Refuse, Service};
use super::parse::set;
use super::quality::in_order;
use super::validate::{ServicePlaces, title};
use super::walk::{At, Section, Span};
pub use crate::quality::marks::Settings as AdaptiveMarks;
use crate::queue::order;

const LEAST_DEADLINE: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_secs(3_600);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// It goes into answers as a whole.
const MOST_PAGE: u64 = 64 * KIB;
/// A datagram has up to 64 KiB, and one at least is to fit.
const LEAST_UDP_MEMORY: u64 = 64 * KIB;
const DEFAULT_UDP_MEMORY: u64 = MIB;
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(10);
/// As many as servers may have.
const MOST_MARK: i64 = 1_000_000_000;

/// For the queues of all services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most bytes of all waiting connections.
    pub memory: u64,
    /// How long the packet path hands connections over to a controller that does not show itself. Then it refuses them.
    pub controller_timeout: Duration,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { memory: 64 * MIB, controller_timeout: Duration::from_secs(5) }
    }
}

/// How new connections of a service wait while no server may take them.
///
/// What decides the class of a connection is the client's address (of all prefixes that hold it the longest), else its
/// DSCP, else its destination port. A connection of no class has the priority and the deadline of the service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceQueue {
    pub order: order::Settings,
    /// Of connections of no class: 0 to 4, for priorities 1 (most urgent) to 5.
    pub ring: u8,
    /// How long connections of no class wait at most.
    pub deadline: Duration,
    pub at_deadline: AtDeadline,
    /// Lengths of the IPv4 and of the IPv6 prefix that count as one source.
    pub source_prefix: (u8, u8),
    pub verify: Verify,
    /// Most bytes of waiting datagrams; zero: datagrams do not wait.
    pub udp_memory: u64,
    pub marks: Marks,
    /// There with [`AtDeadline::Respond`] only.
    pub responder: Option<Responder>,
    pub classes: Classes,
}

impl Default for ServiceQueue {
    fn default() -> Self {
        Self {
            order: order::Settings::default(),
            ring: 2,
            deadline: Duration::from_secs(10),
            at_deadline: AtDeadline::default(),
            source_prefix: (24, 56),
            verify: Verify::default(),
            udp_memory: 0,
            marks: Marks::default(),
            responder: None,
            classes: Classes::default(),
        }
    }
}

impl ServiceQueue {
    /// Class, ring and deadline of a connection with this DSCP and destination port. `by_prefix` is the position in
    /// `classes` of the one that the client's address leads to.
    ///
    /// Zero is no class, and a larger number stands for the class at the position below it.
    pub fn class_of(&self, by_prefix: Option<u16>, dscp: u8, port: u16) -> (u16, u8, Duration) {
        match self.classes.find(by_prefix, dscp, port) {
            Some((number, class)) => (number, class.ring, class.deadline),
            None => (0, self.ring, self.deadline),
        }
    }
}

/// How a client learns that it has waited for too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtDeadline {
    #[default]
    Reset,
    Drop,
    /// With an HTTP response, see [`Responder`].
    Respond,
}

/// Whether clients must show that they are at their address before they are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    #[default]
    Auto,
    Always,
    Never,
}

/// Where the most active flows of a server come from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Marks {
    /// From `high_water` and from agents.
    #[default]
    Static,
    Adaptive(AdaptiveMarks),
}

impl Marks {
    /// None: they do not follow latency.
    pub const fn adaptive(&self) -> Option<AdaptiveMarks> {
        match self {
            Self::Static => None,
            Self::Adaptive(settings) => Some(*settings),
        }
    }
}

/// What clients get for an answer at the deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Responder {
    /// When they are told to try again.
    pub retry_after: Duration,
    /// Body of the response; none: a plain one.
    pub page: Option<Vec<u8>>,
}

/// Where things of a queue stand.
#[derive(Debug, Default)]
pub(super) struct QueuePlaces {
    pub section: Span,
    /// Servers can fill up, or what is to say so was told wrong already.
    pub marked: bool,
    pub at_deadline: Span,
    pub udp: Span,
    /// Whether datagrams wait is not known.
    pub wrong_udp: bool,
    pub classes: Vec<ClassPlaces>,
}

pub(super) fn of_all(section: Section<'_, '_>) -> QueueLimits {
    let mut limits = QueueLimits::default();
    set(&mut limits.memory, section.bytes("memory", MIB..=16 * GIB));
    let range = Duration::from_millis(100)..=Duration::from_secs(300);
    set(&mut limits.controller_timeout, section.duration("controller_timeout", range, ""));
    section.finish();
    limits
}

/// `refuse` is that of the service, and decides what its default is at the deadline.
pub(super) fn of_service(section: Section<'_, '_>, refuse: Refuse, files: Files<'_>) -> (ServiceQueue, QueuePlaces) {
    let mut queue = ServiceQueue::default();
    let mut place = QueuePlaces { section: section.span.clone(), ..QueuePlaces::default() };
    set(&mut queue.ring, ring(&section));
    set(&mut queue.deadline, deadline(&section));
    queue.at_deadline = match refuse {
        Refuse::Reset => AtDeadline::Reset,
        Refuse::Drop => AtDeadline::Drop,
    };
    place.at_deadline = section.value_span("at_deadline");
    let choices = [("reset", AtDeadline::Reset), ("drop", AtDeadline::Drop), ("respond", AtDeadline::Respond)];
    let at_deadline = section.choice("at_deadline", &choices);
    let wrong_at_deadline = at_deadline.is_none() && section.has("at_deadline");
    set(&mut queue.at_deadline, at_deadline);
    order(&section, &mut queue.order);
    if let Some(prefix) = section.section("source_prefix", "[service.queue.source_prefix]") {
        set(&mut queue.source_prefix.0, prefix.number("ipv4", 8..=32));
        set(&mut queue.source_prefix.1, prefix.number("ipv6", 16..=128));
        prefix.finish();
    }
    let choices = [("auto", Verify::Auto), ("always", Verify::Always), ("never", Verify::Never)];
    set(&mut queue.verify, section.choice("verify", &choices));
    udp(&section, &mut queue, &mut place);
    marks(&section, &mut queue, &mut place);
    queue.responder = responder(&section, queue.at_deadline, wrong_at_deadline, files);
    if queue.deadline <= queue.order.target && (section.has("deadline") || section.has("target")) {
        let given = if section.has("deadline") { "deadline" } else { "target" };
        before_overload(&section, given);
    }
    let (classes, places) = classes::classes(&section, (queue.deadline, queue.order.target), files);
    queue.classes = classes.into();
    place.classes = places;
    section.finish();
    (queue, place)
}

/// Of a priority.
pub(super) fn ring(section: &Section<'_, '_>) -> Option<At<u8>> {
    section.number::<u8>("priority", 1..=5).map(|priority| priority.map(|priority| priority - 1))
}

pub(super) fn deadline(section: &Section<'_, '_>) -> Option<At<Duration>> {
    section.duration("deadline", LEAST_DEADLINE..=HOUR, "")
}

pub(super) fn before_overload(section: &Section<'_, '_>, key: &str) {
    let help = "make `deadline` longer, or `target` of [service.queue] shorter: else no connection waits long enough \
                to show a standing overload";
    section.error(section.value_span(key), "`deadline` is not longer than `target`", help);
}

fn order(section: &Section<'_, '_>, order: &mut order::Settings) {
    if let Some(weights) = section.numbers::<u32>("weights", 0..=1_000, "[16, 8, 4, 2, 1]") {
        let wanted = order.weights.len();
        let given = section.list_length("weights").unwrap_or(1);
        if given != wanted {
            let help = "give one per priority, the most urgent first: weights = [16, 8, 4, 2, 1]";
            section.error(weights.span, format!("`weights` has {given} of {wanted} weights"), help);
        } else if weights.value.len() == wanted {
            if weights.value.iter().all(|weight| weight.value == 0) {
                let help = "give larger weights to priorities that are to be served more: weights = [16, 8, 4, 2, 1]";
                section.error(weights.span, "all weights are 0, so no connection would ever be served", help);
            } else {
                for (priority, weight) in (1..).zip(&weights.value).filter(|(_, weight)| weight.value == 0) {
                    let message =
                        format!("priority {priority} has the weight 0, so its connections would never be served");
                    section.error(weight.span.clone(), message, "give each priority a weight of 1 at least");
                }
            }
            for (field, weight) in order.weights.iter_mut().zip(weights.value) {
                *field = weight.value;
            }
        }
    }
    let minute = Duration::from_secs(60);
    set(&mut order.target, section.duration("target", Duration::from_millis(1)..=minute, ""));
    set(&mut order.interval, section.duration("interval", LEAST_DEADLINE..=10 * minute, ""));
    if order.target >= order.interval {
        let given = if section.has("target") { "target" } else { "interval" };
        let help = "make `interval` several times as long: within it the wait is to fall below `target` once";
        section.error(section.value_span(given), "`target` is not shorter than `interval`", help);
    }
    let entries = 1..=1_000_000;
    set(&mut order.max_entries, section.number("max_entries", entries.clone()));
    order.max_per_source = order.max_per_source.min(order.max_entries);
    set(&mut order.max_per_source, section.number("max_per_source", entries));
    in_order(section, ("max_per_source", order.max_per_source), ("max_entries", order.max_entries));
}

fn udp(section: &Section<'_, '_>, queue: &mut ServiceQueue, place: &mut QueuePlaces) {
    place.udp = section.value_span("udp");
    let waits = section.boolean("udp");
    place.wrong_udp = waits.is_none() && section.has("udp");
    let waits = waits.is_some_and(|waits| waits.value);
    let memory = section.bytes("udp_memory", LEAST_UDP_MEMORY..=GIB);
    if waits {
        queue.udp_memory = memory.map_or(DEFAULT_UDP_MEMORY, |memory| memory.value);
    } else if section.has("udp_memory") && !place.wrong_udp {
        section.error(
            section.key_span("udp_memory"),
            "`udp_memory` means nothing while no datagrams wait",
            "remove it, or set udp = true",
        );
    }
}

fn marks(section: &Section<'_, '_>, queue: &mut ServiceQueue, place: &mut QueuePlaces) {
    let marks = section.choice("marks", &[("static", false), ("adaptive", true)]);
    let wrong = marks.is_none() && section.has("marks");
    let adaptive = marks.is_some_and(|marks| marks.value);
    place.marked = wrong || adaptive;
    let mut settings = AdaptiveMarks::default();
    if let Some(section) = section.section("adaptive", "[service.queue.adaptive]") {
        set(&mut settings.min, section.number("min", 1..=MOST_MARK));
        set(&mut settings.max, section.number("max", 1..=MOST_MARK));
        set(&mut settings.tolerance, section.decimal("tolerance", 1.0..=10.0));
        set(&mut settings.smoothing, section.decimal("smoothing", 0.01..=1.0));
        set(&mut settings.baseline_age, section.duration("baseline_age", Duration::from_secs(10)..=HOUR, ""));
        in_order(&section, ("min", settings.min), ("max", settings.max));
        section.finish();
    }
    if adaptive {
        queue.marks = Marks::Adaptive(settings);
    } else if section.has("adaptive") && !wrong {
        section.error(
            section.key_span("adaptive"),
            "`adaptive` means nothing with static marks",
            "remove it, or set marks = \"adaptive\"",
        );
    }
}

fn responder(section: &Section<'_, '_>, at_deadline: AtDeadline, unknown: bool, files: Files<'_>) -> Option<Responder> {
    let mut responder = Responder { retry_after: DEFAULT_RETRY_AFTER, page: None };
    let range = Duration::from_secs(1)..=Duration::from_secs(86_400);
    set(&mut responder.retry_after, section.duration("retry_after", range, ""));
    let page = section.string("page", "/etc/loadbalancer/wait.html");
    if at_deadline == AtDeadline::Respond {
        if let Some(page) = page {
            match files.read(page.value, MOST_PAGE) {
                Ok(bytes) => responder.page = Some(bytes),
                Err((message, help)) => section.error(page.span, message, help),
            }
        }
        return Some(responder);
    }
    for key in ["retry_after", "page"].into_iter().filter(|key| section.has(key) && !unknown) {
        section.error(
            section.key_span(key),
            format!("`{key}` means nothing without a response at the deadline"),
            "remove it, or set at_deadline = \"respond\"",
        );
    }
    None
}

/// Connections can come to wait, and there is a way to tell their clients.
pub(super) fn validate(service: &Service, place: &ServicePlaces, errors: &mut Errors<'_>) {
    let Some(queue) = &service.queue else {
        return;
    };
    if !place.queue.marked && !service.servers.is_empty() {
        let message =
            format!("no server of {} has a mark, so none ever fills up and nothing would wait", title(service));
        let help =
            "set `high_water` on the servers, add [service.agent], which may set it, or set marks = \"adaptive\"";
        errors.add(place.queue.section.clone(), message, help);
    }
    classes::validate(&queue.classes, &place.queue.classes, errors);
    if service.listen.is_empty() || place.wrong_listens || place.queue.wrong_udp {
        return;
    }
    let listens = |protocol| service.listen.iter().any(|listen| listen.protocol == protocol);
    if queue.udp_memory > 0 && !listens(Protocol::Udp) {
        let message = format!("{} has no UDP listener, so no datagram can wait", title(service));
        errors.add(place.queue.udp.clone(), message, "remove `udp`, or add an address with /udp to `listen`");
    }
    if queue.udp_memory == 0 && !listens(Protocol::Tcp) {
        let message = format!("{} has no TCP listener, so no connection can wait", title(service));
        let help = "remove [service.queue], or set udp = true, so that the first datagrams of flows wait";
        errors.add(place.queue.section.clone(), message, help);
    } else if queue.at_deadline == AtDeadline::Respond {
        let help = "set at_deadline = \"reset\" or \"drop\"";
        let any_port = |listen: &&super::Listen| listen.protocol == Protocol::Tcp && listen.port.is_none();
        if !listens(Protocol::Tcp) {
            let message = format!("{} has no TCP listener, and a response needs a connection", title(service));
            errors.add(place.queue.at_deadline.clone(), message, help);
        } else if let Some(listen) = service.listen.iter().find(any_port) {
            let message = format!("{} cannot respond on any port, as in {listen}", title(service));
            let help = format!("name the ports where clients speak HTTP in `listen`, or {help}");
            errors.add(place.queue.at_deadline.clone(), message, help);
        }
    }
    classes::reached(service, queue, &place.queue.classes, errors);
}

#[cfg(test)]
mod tests;
