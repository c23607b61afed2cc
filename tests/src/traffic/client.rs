//! HTTP requests, one at a time.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::http::SERVER_HEADER;
use super::pattern::{Pattern, is_pattern};
use crate::lab::netns::Namespace;
use crate::lab::runtime::{Runtime, RuntimeError};

/// Why a request failed.
#[derive(Debug, Error)]
pub enum RequestError {
    #[error("the connection was refused")]
    Refused,
    #[error("no connection in time")]
    ConnectTimedOut,
    #[error("network or host unreachable")]
    Unreachable,
    #[error("no free local port")]
    NoLocalPort,
    #[error("the connection was reset")]
    Reset,
    #[error("the connection was closed before the whole answer")]
    Closed,
    #[error("no answer in time")]
    TimedOut,
    #[error("status {0}")]
    Status(u16),
    #[error("the body is not what the server sends")]
    Corrupt,
    #[error("not sent: {0} requests are in flight")]
    NotSent(u32),
    #[error("{0}")]
    Other(String),
}

impl RequestError {
    /// Name of the kind, for counting.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::ConnectTimedOut => "connect-timed-out",
            Self::Unreachable => "unreachable",
            Self::NoLocalPort => "no-local-port",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::TimedOut => "timed-out",
            Self::Status(_) => "status",
            Self::Corrupt => "corrupt",
            Self::NotSent(_) => "not-sent",
            Self::Other(_) => "other",
        }
    }

    fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Self::NoLocalPort,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::NotConnected => Self::Closed,
            _ => Self::Other(error.to_string()),
        }
    }
}

impl From<hyper::Error> for RequestError {
    fn from(error: hyper::Error) -> Self {
        if let Some(cause) = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()) {
            return Self::of_io(cause);
        }
        let closed = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
        if closed { Self::Closed } else { Self::Other(error.to_string()) }
    }
}

/// What to ask for.
#[derive(Clone, Debug)]
pub struct Query {
    pub path: String,
    /// Bytes of known content to send along; zero makes it a GET, else it is a POST.
    pub upload_bytes: usize,
    /// The server closes the connection after the answer.
    pub close: bool,
}

impl Query {
    pub fn get(path: &str) -> Self {
        Self { path: path.to_owned(), upload_bytes: 0, close: false }
    }
}

#[derive(Clone, Debug)]
pub struct Answer {
    /// Empty if the answer does not name it.
    pub server: String,
    pub body: Bytes,
}

/// An open connection. Dropping it closes it.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Pattern>,
    target: SocketAddr,
}

impl Connection {
    pub async fn open(target: SocketAddr, deadline: Instant) -> Result<Self, RequestError> {
        let connect = async {
            let stream = TcpStream::connect(target).await.map_err(|error| RequestError::of_io(&error))?;
            stream.set_nodelay(true).map_err(|error| RequestError::of_io(&error))?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            // Errors of the connection also reach the request that is under way.
            tokio::spawn(async move { connection.await.unwrap_or_default() });
            Ok(Self { sender, target })
        };
        match timeout_at(deadline, connect).await {
            Ok(Err(RequestError::TimedOut)) | Err(_) => Err(RequestError::ConnectTimedOut),
            Ok(result) => result,
        }
    }

    /// Sends one request and reads the whole answer. After an error the connection is of no use.
    pub async fn request(&mut self, query: &Query, deadline: Instant) -> Result<Answer, RequestError> {
        timeout_at(deadline, self.exchange(query)).await.unwrap_or(Err(RequestError::TimedOut))
    }

    /// Whether another request may be sent.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    async fn exchange(&mut self, query: &Query) -> Result<Answer, RequestError> {
        self.sender.ready().await?;
        let mut request = Request::builder().uri(&query.path).header(header::HOST, self.target.to_string());
        if query.upload_bytes > 0 {
            request = request.method("POST");
        }
        if query.close {
            request = request.header(header::CONNECTION, "close");
        }
        let request = request
            .body(Pattern::new(query.upload_bytes))
            .map_err(|error| RequestError::Other(format!("{}: {error}", query.path)))?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        if !head.status.is_success() {
            return Err(RequestError::Status(head.status.as_u16()));
        }
        if let Some(length) = query.path.strip_prefix("/bytes/")
            && (Ok(body.len()) != length.parse() || !is_pattern(&body))
        {
            return Err(RequestError::Corrupt);
        }
        let server = head.headers.get(SERVER_HEADER).and_then(|name| name.to_str().ok()).unwrap_or_default();
        Ok(Answer { server: server.to_owned(), body })
    }
}

#[derive(Debug, Error)]
pub enum FetchError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("{path} of {target}: {source}")]
    Request { target: SocketAddr, path: String, source: RequestError },
}

/// One request on a connection of its own, from a namespace.
pub fn fetch(
    namespace: &Namespace,
    target: SocketAddr,
    query: &Query,
    timeout: Duration,
) -> Result<Answer, FetchError> {
    let query = Query { close: true, ..query.clone() };
    let path = query.path.clone();
    let answer = Runtime::start(namespace)?.block_on(async move {
        let deadline = Instant::now() + timeout;
        Connection::open(target, deadline).await?.request(&query, deadline).await
    });
    answer.map_err(|source| FetchError::Request { target, path, source })
}
