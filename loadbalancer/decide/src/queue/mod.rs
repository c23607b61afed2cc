//! Connections that wait for a server. Pure: nothing here reads a clock or sends a packet.
//!
//! `engine` takes what the packet path hands over, and says what goes where; `service` does so for one service, whose
//! waiting entries are in an `order`, made of a `heap`; `wait` counts how long was waited, `report` tells it.
//!
//! # Who is next
//!
//! - Between five rings of urgency by weighted fair shares, so that the urgent ones wait less and none starves.
//! - Within a ring by deadline, as long as the ring is in good order. In standing overload the newest first: by
//!   deadline all would be served just before it is too late for them, and a client that has waited for long is likely
//!   to have given up.
//! - Who is not verified (its address may be forged) has the same place, but is the first to go when room is needed,
//!   and may be left out of releases.

pub mod classes;
pub mod settings;
pub mod plan;
pub mod engine;
mod service;
pub mod frame;
pub mod order;
mod heap;
pub mod wait;
pub mod report;
