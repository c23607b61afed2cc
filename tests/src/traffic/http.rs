//! The HTTP/1.1 side of a server.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the request as the server saw it, a [`Seen`] in JSON |
//! | `/bytes/N` | N bytes of known content |
//! | `/stream/N/MS` | N lines, one every MS milliseconds, as separate chunks |
//! | `/agent` | the load of the server, in JSON |
//!
//! Every answer names the server in the header [`SERVER_HEADER`].

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, channel::Channel};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::select;
use tokio::time::interval;

use super::agent;
use super::connection::{Open, reset_on_close};
use super::pattern::Pattern;
use super::state::{InFlight, State};

pub const SERVER_HEADER: &str = "x-server";
/// Most bytes that `/bytes/N` gives.
pub const MAX_BYTES: usize = 1 << 30;
/// Most lines, and most milliseconds between them, that `/stream/N/MS` gives.
pub const MAX_STREAM: u32 = 100_000;

/// A request as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub server: String,
    pub client: SocketAddr,
    /// The address that the client's packets arrived at.
    pub local: SocketAddr,
    pub method: String,
    pub headers: BTreeMap<String, String>,
    /// Bytes of the request's body.
    pub body_bytes: usize,
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

pub(super) async fn serve(stream: TcpStream, mut open: Open) {
    let (Ok(client), Ok(local), Ok(())) = (stream.peer_addr(), stream.local_addr(), stream.set_nodelay(true)) else {
        // The client reset the connection before it was served.
        return;
    };
    let state = Arc::clone(open.state());
    let service = service_fn(|request| answer(request, canonical(client), canonical(local), Arc::clone(&state)));
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    select! {
        // How a connection ended shows at the client, which records it.
        _ended = &mut connection => {}
        () = open.reset_asked() => reset_on_close(&connection.into_parts().io.into_inner()),
    }
}

async fn answer(
    request: Request<Incoming>,
    client: SocketAddr,
    local: SocketAddr,
    state: Arc<State>,
) -> Result<Answer, hyper::Error> {
    let (head, body) = request.into_parts();
    let body_bytes = drain(body).await?;
    let parts: Vec<&str> = head.uri.path().split('/').skip(1).collect();
    if parts == ["agent"] {
        return Ok(Response::new(text(agent::json(state.busy(), state.in_flight()))));
    }
    let _in_flight = InFlight::new(&state);
    let status = StatusCode::from_u16(state.serve().await).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let pattern_bytes = state.behaviour().body_bytes;
    let (status, body) = match (parts.as_slice(), pattern_bytes) {
        ([""], Some(length)) => (status, Pattern::new(length).boxed()),
        ([""], None) => {
            let headers = head.headers.iter();
            let seen = Seen {
                server: state.name.clone(),
                client,
                local,
                method: head.method.to_string(),
                headers: headers
                    .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
                    .collect(),
                body_bytes,
            };
            (status, text(serde_json::to_string(&seen).expect("strings and numbers are JSON")))
        }
        (["bytes", length], _) => match length.parse() {
            Ok(length) if length <= MAX_BYTES => (status, Pattern::new(length).boxed()),
            _ => refusal(),
        },
        (["stream", lines, pause_ms], _) => match (lines.parse(), pause_ms.parse()) {
            (Ok(lines @ 0..=MAX_STREAM), Ok(pause_ms @ 1..=MAX_STREAM)) => {
                (status, stream(state.name.clone(), lines, Duration::from_millis(pause_ms.into())))
            }
            _ => refusal(),
        },
        _ => (StatusCode::NOT_FOUND, text("see / and /bytes/N and /stream/N/MS\n")),
    };
    let answer = Response::builder().status(status).header(SERVER_HEADER, &state.name).body(body);
    Ok(answer.expect("the name of a server is a header value"))
}

fn refusal() -> (StatusCode, BoxBody<Bytes, Infallible>) {
    let limits = format!("at most /bytes/{MAX_BYTES} and /stream/{MAX_STREAM}/{MAX_STREAM}\n");
    (StatusCode::BAD_REQUEST, text(limits))
}

fn text(text: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(text.into()).boxed()
}

fn stream(server: String, lines: u32, pause: Duration) -> BoxBody<Bytes, Infallible> {
    let (mut sender, body) = Channel::new(1);
    tokio::spawn(async move {
        let mut ticks = interval(pause);
        for line in 0..lines {
            ticks.tick().await;
            if sender.send_data(format!("{server} {line}\n").into()).await.is_err() {
                // The client has gone.
                return;
            }
        }
    });
    body.boxed()
}

async fn drain(mut body: Incoming) -> Result<usize, hyper::Error> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(length)
}

/// An IPv4 address as such, not in the IPv6 form that a socket of both families shows.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
