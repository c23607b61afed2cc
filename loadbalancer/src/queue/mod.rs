//! The order of connections that wait for a server, one queue for each service. Pure.
//!
//! Nothing here reads a clock or holds a packet back: times come in as durations since the controller's start, and what
//! waits is any value. `order` is the queue, `heap` what it is made of; `wait` counts how long was waited.
//!
//! # Who is next
//!
//! - Between five rings of urgency by weighted fair shares, so that the urgent ones wait less and none starves.
//! - Within a ring by deadline, as long as the ring is in good order. In standing overload the newest first: by
//!   deadline all would be served just before it is too late for them, and a client that has waited for long is likely
//!   to have given up.
//! - Who is not verified (its address may be forged) has the same place, but is the first to go when room is needed,
//!   and may be left out of releases.

pub mod order;
mod heap;
pub mod wait;
