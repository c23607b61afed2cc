//! Connections that wait for a server. Pure: nothing here reads a clock or sends a packet.
//!
//! `engine` takes what the packet path hands over, and says what goes where; `order` is the queue of one service, `heap` what
//! that is made of; `wait` counts how long was waited, `report` tells it.
//!
//! # Who is next
//!
//! - Between five rings of urgency by weighted fair shares, so that the urgent ones wait less and none starves.
//! - Within a ring by deadline, as long as the ring is in good order. In standing overload the newest first: by
//!   deadline all would be served just before it is too late for them, and a client that has waited for long is likely
//!   to have given up.
//! - Who is not verified (its address may be forged) has the same place, but is the first to go when room is needed,
//!   and may be left out of releases.

pub mod engine;
pub mod order;
mod heap;
pub mod wait;
pub mod report;
