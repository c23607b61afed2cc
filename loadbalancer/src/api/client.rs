//! The command line's side of the admin interface.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::types::{
    API_VERSION, Change, Changed, ChannelsReport, Failure, QualityReport, QueueReport, Snapshot, StandbyReport,
};

/// What a name of a server is encoded to in a path: else `web1?` would be `web1`.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'_').remove(b'-').remove(b':');
const TIME_OUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no controller answers on {}: {source}\nhelp: start one with `loadbalancer run --config FILE`, or name its socket \
         with --socket",
        path.display()
    )]
    Connect { path: PathBuf, source: io::Error },
    #[error("{} may be used by root only\nhelp: use sudo, or set `mode` in [admin]", .0.display())]
    Denied(PathBuf),
    #[error("the controller's answer was cut short: {0}")]
    Http(#[from] hyper::Error),
    #[error("the controller did not answer within {TIME_OUT:?}")]
    TimeOut,
    #[error("the controller's answer is not understood: {0}\nhelp: it may be of another version than this command")]
    Json(#[from] serde_json::Error),
    /// The controller refused, in its own words.
    #[error("{0}")]
    Refused(String),
}

/// Reads the state of the gateway.
///
/// # Errors
/// As all requests here: if no controller answers, it refuses, or its answer is not understood.
pub async fn snapshot(socket: &Path) -> Result<Snapshot, ClientError> {
    call(socket, Method::GET, "snapshot", &()).await
}

/// Why the weights are what they are.
///
/// # Errors
/// As [`snapshot`].
pub async fn quality(socket: &Path) -> Result<QualityReport, ClientError> {
    call(socket, Method::GET, "quality", &()).await
}

/// The channels of all servers.
///
/// # Errors
/// As [`snapshot`].
pub async fn channels(socket: &Path) -> Result<ChannelsReport, ClientError> {
    call(socket, Method::GET, "channels", &()).await
}

/// What waits.
///
/// # Errors
/// As [`snapshot`].
pub async fn queue(socket: &Path) -> Result<QueueReport, ClientError> {
    call(socket, Method::GET, "queue", &()).await
}

/// The pool of standby servers.
///
/// # Errors
/// As [`snapshot`].
pub async fn standby(socket: &Path) -> Result<StandbyReport, ClientError> {
    call(socket, Method::GET, "standby", &()).await
}

/// Changes a server, and gives its full name.
///
/// # Errors
/// As [`snapshot`]; the controller refuses if it has no such server, or several.
pub async fn change(socket: &Path, server: &str, change: &Change) -> Result<String, ClientError> {
    let server = percent_encoding::utf8_percent_encode(server, NAME);
    let changed: Changed = call(socket, Method::POST, &format!("servers/{server}"), change).await?;
    Ok(changed.server)
}

/// Has the controller read its configuration anew.
///
/// # Errors
/// As [`snapshot`]; the controller refuses a wrong configuration, and keeps the old one.
pub async fn reload(socket: &Path) -> Result<(), ClientError> {
    let _empty: serde_json::Value = call(socket, Method::POST, "reload", &()).await?;
    Ok(())
}

async fn call<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> Result<T, ClientError> {
    timeout(TIME_OUT, exchange(socket, method, path, body)).await.map_err(|_| ClientError::TimeOut)?
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> Result<T, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Denied(socket.to_owned()),
        _ => ClientError::Connect { path: socket.to_owned(), source },
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(format!("/v{API_VERSION}/{path}"))
        .header(hyper::header::HOST, "loadbalancer")
        .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))
        .map_err(|error| ClientError::Refused(format!("`{path}` cannot be asked for: {error}")))?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    drop(sender);
    driver.abort();
    if status.is_success() {
        return Ok(serde_json::from_slice(&bytes)?);
    }
    let failure: Failure = serde_json::from_slice(&bytes)?;
    Err(ClientError::Refused(failure.error))
}
