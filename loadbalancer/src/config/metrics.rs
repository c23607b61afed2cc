//! `[metrics]`: where Prometheus finds metrics.

use std::net::SocketAddr;

use super::forms::write_as;
use super::schema::table::{Keys, Table};
use super::schema::value::Rejection;

pub(super) fn table() -> Table<SocketAddr> {
    let usual: SocketAddr = ([127, 0, 0, 1], 9077).into();
    Keys::new("[metrics]", "Metrics for Prometheus. Without this table none are served.", usual)
        .text("listen", |it| it, listen, "127.0.0.1:9077", "Address and port to serve them at, over HTTP.")
        .plain()
}

fn listen(text: &str) -> Result<SocketAddr, Rejection> {
    text.parse().map_err(|_| write_as("listen", "127.0.0.1:9077", format!("`{text}` is no address with a port")))
}
