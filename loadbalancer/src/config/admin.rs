//! `[admin]`: the socket by which the controller is asked and told.

use std::path::PathBuf;

use super::document::Admin;
use super::forms::write_as;
use super::schema::table::{Keys, Table};
use super::schema::value::Rejection;

/// Longest path of a Unix socket (`sun_path` without the final zero).
const MAX_SOCKET: usize = 107;

pub(super) fn table() -> Table<Admin> {
    Keys::new("[admin]", "Where the command line finds the controller.", Admin::default())
        .text("socket", |it| &mut it.socket, socket, "/run/loadbalancer.sock", "Unix socket, by its absolute path.")
        .text("mode", |it| &mut it.mode, mode, "0600", "Permission bits of the socket, in octal.")
        .plain()
}

fn socket(text: &str) -> Result<PathBuf, Rejection> {
    if text.starts_with('/') && !text.ends_with('/') && text.len() <= MAX_SOCKET {
        return Ok(PathBuf::from(text));
    }
    let help = format!("give an absolute path of at most {MAX_SOCKET} bytes: /run/loadbalancer.sock");
    Err((format!("`{text}` cannot be a socket"), help))
}

fn mode(text: &str) -> Result<u32, Rejection> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(write_as("mode", "0600", format!("`{text}` are no permission bits"))),
    }
}
