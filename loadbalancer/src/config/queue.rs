//! `[queue]`, what the queues of all services share, and `[service.queue]`, how connections wait while no server may
//! take them.

use std::time::Duration;

use super::class::{self, ClassKeys, before_overload, deadline_key, priority_key};
use super::document::QueueLimits;
use super::quality::in_order;
use super::schema::table::{Keys, Table};
use super::schema::value::{At, Given, List, Span};
use super::schema::walk::Section;
use decide::quality::marks::Settings as AdaptiveMarks;
use decide::queue::classes::MOST_CLASSES;
use decide::queue::order;
use decide::queue::settings::{AtDeadline, Marks, Responder, ServiceQueue, Verify};
use model::mode::Refuse;

const LEAST_INTERVAL: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_secs(3_600);
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// It goes into answers as a whole.
const MOST_PAGE: u64 = 64 * KIB;
/// A datagram has up to 64 KiB, and one at least is to fit.
const LEAST_UDP_MEMORY: u64 = 64 * KIB;
/// As many as servers may have.
const MOST_MARK: i64 = 1_000_000_000;

/// A queue and where things of it stand.
#[derive(Clone, Debug)]
pub(super) struct PlacedQueue {
    /// Its classes are below.
    pub queue: ServiceQueue,
    pub span: Span,
    /// Servers can fill up, or what is to say so was told wrong already.
    pub marked: bool,
    pub at_deadline: Span,
    /// Whether datagrams wait: where that stands.
    pub udp: Span,
    /// And if it is not known.
    pub udp_rejected: bool,
    pub classes: Vec<ClassKeys>,
}

impl PlacedQueue {
    pub fn document(self) -> ServiceQueue {
        let classes: Vec<_> = self.classes.into_iter().map(ClassKeys::document).collect();
        ServiceQueue { classes: classes.into(), ..self.queue }
    }
}

#[derive(Clone, Debug)]
struct QueueKeys {
    /// What needs no more than to be read.
    queue: ServiceQueue,
    priority: u8,
    at_deadline: Given<AtDeadline>,
    weights: List<At<u32>>,
    max_per_source: Given<usize>,
    udp: Given<bool>,
    udp_memory: u64,
    adaptive: Given<bool>,
    adaptive_marks: AdaptiveMarks,
    retry_after: Duration,
    page: Option<At<String>>,
    classes: List<ClassKeys>,
}

pub(super) fn of_all() -> Table<QueueLimits> {
    Keys::new("[queue]", "For the queues of all services.", QueueLimits::default())
        .bytes("memory", |it| &mut it.memory, MIB..=16 * GIB, "Most memory of all that waits.")
        .time(
            "controller_timeout",
            |it| &mut it.controller_timeout,
            Duration::from_millis(100)..=Duration::from_secs(300),
            "How long the packet path hands connections over to a controller that does not show itself. Then it refuses \
             them.",
        )
        .plain()
}

/// `refuse` is that of the service, and decides what its default is at the deadline.
pub(super) fn of_service(refuse: Refuse) -> Table<PlacedQueue> {
    let queue = ServiceQueue::default();
    let at_deadline = match refuse {
        Refuse::Reset => AtDeadline::Reset,
        Refuse::Drop => AtDeadline::Drop,
    };
    let usual = QueueKeys {
        priority: queue.ring + 1,
        at_deadline: Given::default_of(at_deadline),
        weights: List::default_of(queue.order.weights),
        max_per_source: Given::default_of(queue.order.max_per_source),
        udp: Given::default(),
        udp_memory: MIB,
        adaptive: Given::default(),
        adaptive_marks: AdaptiveMarks::default(),
        retry_after: Duration::from_secs(10),
        page: None,
        classes: List::default(),
        queue,
    };
    let doc = "How connections wait while no server may take them. Without this table they are refused at once.";
    let keys = Keys::new("[service.queue]", doc, usual).optional();
    let keys = priority_key(keys, |it| &mut it.priority, "Ring of connections of no class: 1 (most urgent) to 5.");
    let keys = deadline_key(keys, |it| &mut it.queue.deadline, "How long connections of no class wait at most.").choice(
        "at_deadline",
        |it| &mut it.at_deadline,
        &[("reset", AtDeadline::Reset), ("drop", AtDeadline::Drop), ("respond", AtDeadline::Respond)],
        "What becomes of connections at the deadline: \"reset\", \"drop\", or \"respond\" with HTTP status 503. Without: as `refuse` has it.",
    );
    let keys = order_keys(keys)
        .table("source_prefix", |it| &mut it.queue.source_prefix, |it| source_prefix(it.queue.source_prefix))
        .choice(
            "verify",
            |it| &mut it.queue.verify,
            &[("auto", Verify::Auto), ("always", Verify::Always), ("never", Verify::Never)],
            "Whether clients must show that they are at their address: \"auto\" (when many have not), \"always\" or \
             \"never\".",
        )
        .boolean("udp", |it| &mut it.udp, "Whether the first datagrams of flows wait as well.")
        .bytes("udp_memory", |it| &mut it.udp_memory, LEAST_UDP_MEMORY..=GIB, "Most bytes of waiting datagrams.")
        .only("udp", &["true"])
        .choice(
            "marks",
            |it| &mut it.adaptive,
            &[("static", false), ("adaptive", true)],
            "When a server is full. \"static\": at its high_water, or as agents say. \"adaptive\": that is found from \
             latency.",
        )
        .table("adaptive", |it| &mut it.adaptive_marks, |it| adaptive(it.adaptive_marks))
        .only("marks", &["adaptive"])
        .time(
            "retry_after",
            |it| &mut it.retry_after,
            Duration::from_secs(1)..=Duration::from_secs(86_400),
            "What Retry-After says.",
        )
        .only("at_deadline", &["respond"])
        .string(
            "page",
            |it| &mut it.page,
            "/etc/loadbalancer/wait.html",
            "File with a page of at most 64KiB in place of the plain one; a relative path leads from the configuration.",
        )
        .only("at_deadline", &["respond"]);
    keys.tables("class", |it| &mut it.classes, |it| class::table(it.queue.deadline, it.queue.order.target))
        .most(MOST_CLASSES, "classes", "merge those that have the same priority and deadline")
        .build(|section, it| Some(build(section, it)))
}

fn order_keys(keys: Keys<QueueKeys>) -> Keys<QueueKeys> {
    let entries = 1..=1_000_000;
    keys.numbers::<u32>(
        "weights",
        |it| &mut it.weights,
        0..=1_000,
        "[16, 8, 4, 2, 1]",
        "Shares of priorities 1 to 5 in what becomes free.",
    )
    .time(
        "target",
        |it| &mut it.queue.order.target,
        Duration::from_millis(1)..=Duration::from_secs(60),
        "The newest go first when the oldest has waited for longer than this for all of `interval`.",
    )
    .time(
        "interval",
        |it| &mut it.queue.order.interval,
        LEAST_INTERVAL..=Duration::from_secs(600),
        "How long the wait has to be beyond `target`.",
    )
    .number::<usize>(
        "max_entries",
        |it| &mut it.queue.order.max_entries,
        entries.clone(),
        "Most connections that wait.",
    )
    .number::<usize>(
        "max_per_source",
        |it| &mut it.max_per_source,
        entries,
        "Most that wait of one source, which is a prefix.",
    )
}

fn source_prefix(usual: (u8, u8)) -> Table<(u8, u8)> {
    Keys::new("[service.queue.source_prefix]", "What counts as one source.", usual)
        .number::<u8>("ipv4", |it| &mut it.0, 8..=32, "Length of its IPv4 prefix.")
        .number::<u8>("ipv6", |it| &mut it.1, 16..=128, "Length of its IPv6 prefix.")
        .plain()
}

fn adaptive(usual: AdaptiveMarks) -> Table<AdaptiveMarks> {
    Keys::new("[service.queue.adaptive]", "High-water marks that follow latency.", usual)
        .optional()
        .number::<u32>("min", |it| &mut it.min, 1..=MOST_MARK, "Least mark of a server.")
        .number::<u32>("max", |it| &mut it.max, 1..=MOST_MARK, "Greatest mark.")
        .decimal(
            "tolerance",
            |it| &mut it.tolerance,
            1.0..=10.0,
            "Latency, as a multiple of the usual one, that is not yet taken to be overload.",
        )
        .decimal("smoothing", |it| &mut it.smoothing, 0.01..=1.0, "Share of a new mark in the one that is used.")
        .time(
            "baseline_age",
            |it| &mut it.baseline_age,
            Duration::from_secs(10)..=HOUR,
            "Age from which the usual latency is measured again.",
        )
        .build(|section, it| {
            in_order(section, ("min", it.min), ("max", it.max));
            Some(it)
        })
}

fn build(section: &Section<'_, '_>, mut it: QueueKeys) -> PlacedQueue {
    check_weights(section, &mut it);
    check_order(section, &mut it);
    reject_unused(section, &it);
    let queue = &mut it.queue;
    queue.ring = it.priority - 1;
    queue.at_deadline = it.at_deadline.value;
    queue.udp_memory = if it.udp.value { it.udp_memory } else { 0 };
    queue.marks = if it.adaptive.value { Marks::Adaptive(it.adaptive_marks) } else { Marks::Static };
    if it.at_deadline.value == AtDeadline::Respond {
        let mut responder = Responder { retry_after: it.retry_after, page: None };
        if let Some(page) = it.page {
            match section.files().read(&page.value, MOST_PAGE) {
                Ok(bytes) => responder.page = Some(bytes),
                Err((message, help)) => section.error(page.span, message, help),
            }
        }
        queue.responder = Some(responder);
    }
    if queue.deadline <= queue.order.target && (section.has("deadline") || section.has("target")) {
        let given = if section.has("deadline") { "deadline" } else { "target" };
        before_overload(section, given);
    }
    PlacedQueue {
        queue: it.queue,
        span: section.span.clone(),
        marked: it.adaptive.rejected || it.adaptive.value,
        at_deadline: section.value_span("at_deadline"),
        udp: section.value_span("udp"),
        udp_rejected: it.udp.rejected,
        classes: it.classes.all,
    }
}

fn check_weights(section: &Section<'_, '_>, it: &mut QueueKeys) {
    let wanted = it.queue.order.weights.len();
    let weights = &it.weights;
    let Some(span) = weights.span.clone() else {
        return;
    };
    let given = section.list_length("weights").unwrap_or(1);
    if given != wanted {
        let help = "give one per priority, the most urgent first: weights = [16, 8, 4, 2, 1]";
        section.error(span, format!("`weights` has {given} of {wanted} weights"), help);
    } else if !weights.rejected {
        if weights.values().all(|weight| *weight == 0) {
            let help = "give larger weights to priorities that are to be served more: weights = [16, 8, 4, 2, 1]";
            section.error(span, "all weights are 0, so no connection would ever be served", help);
        } else {
            for (priority, weight) in (1..).zip(&weights.all).filter(|(_, weight)| weight.value == 0) {
                let message = format!("priority {priority} has the weight 0, so its connections would never be served");
                section.error(weight.span.clone(), message, "give each priority a weight of 1 at least");
            }
        }
        for (field, weight) in it.queue.order.weights.iter_mut().zip(weights.values()) {
            *field = *weight;
        }
    }
}

fn check_order(section: &Section<'_, '_>, it: &mut QueueKeys) {
    let order: &mut order::Settings = &mut it.queue.order;
    if order.target >= order.interval {
        let given = if section.has("target") { "target" } else { "interval" };
        let help = "make `interval` several times as long: within it the wait is to fall below `target` once";
        section.error(section.value_span(given), "`target` is not shorter than `interval`", help);
    }
    order.max_per_source = it.max_per_source.value;
    if it.max_per_source.span.is_none() {
        order.max_per_source = order.max_per_source.min(order.max_entries);
    }
    in_order(section, ("max_per_source", order.max_per_source), ("max_entries", order.max_entries));
}

/// Keys that mean nothing as others are.
fn reject_unused(section: &Section<'_, '_>, it: &QueueKeys) {
    if !it.udp.rejected {
        section.reject_unused("udp", if it.udp.value { "true" } else { "false" }, |key, _| {
            let message = format!("`{key}` means nothing while no datagrams wait");
            (message, "remove it, or set udp = true".to_owned())
        });
    }
    if !it.adaptive.rejected {
        section.reject_unused("marks", if it.adaptive.value { "adaptive" } else { "static" }, |key, _| {
            let message = format!("`{key}` means nothing with static marks");
            (message, "remove it, or set marks = \"adaptive\"".to_owned())
        });
    }
    if !it.at_deadline.rejected {
        let responds = it.at_deadline.value == AtDeadline::Respond;
        section.reject_unused("at_deadline", if responds { "respond" } else { "" }, |key, _| {
            let message = format!("`{key}` means nothing without a response at the deadline");
            (message, "remove it, or set at_deadline = \"respond\"".to_owned())
        });
    }
}

#[cfg(test)]
mod tests;
