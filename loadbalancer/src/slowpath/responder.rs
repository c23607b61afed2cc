//! The responder: a small HTTP server that answers those whom no server took in time.
//!
//! It listens on the VIPs themselves, in the prober's namespace. The packet path leads a connection there once it has
//! waited for as long as it may, and what is sent back to where its client's packets came from. Whatever is asked, the
//! answer is "503 Service Unavailable", when to try again, and a page.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::config::Config;
use crate::network::prober::Prober;
use decide::queue::settings::Responder;
use model::address::Protocol;

/// Most connections at once, of all services. What comes beyond is closed.
const MOST_CONNECTIONS: usize = 1024;
/// How long a client may take to send its request.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long it may take for all, the answer included.
const CONNECTION_TIME: Duration = Duration::from_secs(20);
/// How long what a client still sends is read after the answer. Else the kernel would reset the connection, and the
/// client might lose the answer (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(2);
/// Bytes of a request's head.
const MOST_HEAD: usize = 8 * 1024;
/// After what went wrong with a listener.
const PAUSE: Duration = Duration::from_millis(100);
/// Until the next try to listen.
const RETRY: Duration = Duration::from_secs(1);

type Answer = Response<Full<Bytes>>;

/// Where it is to listen, and what it says there.
pub fn wanted(config: &Config) -> BTreeMap<SocketAddr, Responder> {
    let mut wanted = BTreeMap::new();
    for service in &config.services {
        let Some(responder) = service.responder() else { continue };
        for listen in service.listen.iter().filter(|listen| listen.protocol == Protocol::Tcp) {
            if let Some(port) = listen.port {
                wanted.insert(SocketAddr::new(listen.addr, port), responder.clone());
            }
        }
    }
    wanted
}

/// The listeners of all services. They end with it, and with them their connections.
#[derive(Debug)]
pub struct Responders {
    /// Where they are.
    prober: Option<Prober>,
    listeners: BTreeMap<SocketAddr, Listener>,
    free: Arc<Semaphore>,
}

#[derive(Debug)]
struct Listener {
    says: watch::Sender<Answer>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Default for Responders {
    fn default() -> Self {
        Self { prober: None, listeners: BTreeMap::new(), free: Arc::new(Semaphore::new(MOST_CONNECTIONS)) }
    }
}

impl Responders {
    /// Brings the listeners to what is wanted, in the namespace of a prober. Without one there are none.
    pub fn follow(&mut self, prober: Option<&Prober>, wanted: BTreeMap<SocketAddr, Responder>) {
        if self.prober.as_ref() != prober {
            self.listeners.clear();
            self.prober = prober.cloned();
        }
        self.listeners.retain(|address, _| wanted.contains_key(address));
        let Some(prober) = &self.prober else { return };
        for (address, responder) in wanted {
            match self.listeners.get(&address) {
                Some(listener) => drop(listener.says.send_replace(answer(&responder))),
                None => {
                    let (says, said) = watch::channel(answer(&responder));
                    let task = tokio::spawn(listen(prober.clone(), address, said, Arc::clone(&self.free)));
                    self.listeners.insert(address, Listener { says, task });
                }
            }
        }
    }
}

async fn listen(prober: Prober, address: SocketAddr, said: watch::Receiver<Answer>, free: Arc<Semaphore>) {
    let mut failed = false;
    let listener = loop {
        match prober.listen(address).await.and_then(TcpListener::from_std) {
            Ok(listener) => break listener,
            Err(error) if !failed => {
                tracing::error!(%address, %error, "nobody answers those who have waited for too long; they are reset");
                failed = true;
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    };
    // The namespace ends with who has it; the listener is enough.
    drop(prober);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Ok(place) = Arc::clone(&free).try_acquire_owned() {
                        let answer = said.borrow().clone();
                        connections.spawn(async move {
                            if timeout(CONNECTION_TIME, converse(stream, answer)).await.is_err() {
                                tracing::debug!("a client took too long to be told to wait");
                            }
                            drop(place);
                        });
                    }
                }
                Err(error) => {
                    tracing::warn!(%address, %error, "the responder cannot accept");
                    sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers one request, then closes.
async fn converse(mut stream: TcpStream, answer: Answer) {
    let service = service_fn(move |_: Request<Incoming>| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(&mut stream), service);
    match connection.without_shutdown().await {
        // Nobody waits for an answer.
        Err(error) if error.is_timeout() || error.is_incomplete_message() => return,
        Err(error) => tracing::debug!(%error, "a client that was told to wait spoke no HTTP"),
        Ok(_) => {}
    }
    let rest = async {
        stream.shutdown().await?;
        let mut bytes = [0; 4096];
        while stream.read(&mut bytes).await? > 0 {}
        std::io::Result::Ok(())
    };
    if let Ok(Err(error)) = timeout(LINGER, rest).await {
        tracing::debug!(%error, "a client that was told to wait has gone");
    }
}

fn answer(responder: &Responder) -> Answer {
    // Not a moment too early.
    let seconds = responder.retry_after.as_secs() + u64::from(responder.retry_after.subsec_nanos() > 0);
    let body = responder.page.clone().unwrap_or_else(|| page(seconds).into_bytes());
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = answer.headers_mut();
    headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// For who has no page of their own.
fn page(seconds: u64) -> String {
    format!(
        "<!DOCTYPE html>\n\
         <html lang=\"en\">\n\
         <head>\n\
         <meta charset=\"utf-8\">\n\
         <meta http-equiv=\"refresh\" content=\"{seconds}\">\n\
         <title>Please wait</title>\n\
         </head>\n\
         <body>\n\
         <h1>Please wait</h1>\n\
         <p>The service is busy. This page tries again by itself in {seconds} s.</p>\n\
         </body>\n\
         </html>\n"
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn responder(page: Option<&str>) -> Responder {
        Responder { retry_after: Duration::from_millis(6_500), page: page.map(|page| page.as_bytes().to_vec()) }
    }

    /// What it answers to some bytes, to the end of the connection.
    async fn said(responder: &Responder, request: &[u8]) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("it listens");
        let mut client = TcpStream::connect(listener.local_addr().expect("it has one")).await.expect("connected");
        let (stream, _) = listener.accept().await.expect("accepted");
        let served = tokio::spawn(converse(stream, answer(responder)));
        client.write_all(request).await.expect("sent");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("it ends, and is not reset");
        drop(client);
        served.await.expect("it ends");
        String::from_utf8(answer).expect("text")
    }

    #[tokio::test]
    async fn every_request_is_told_when_to_try_again() {
        let long = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 300000\r\n\r\n{}", "a".repeat(300_000));
        let requests = ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "BREW /pot HTTP/1.1\r\nhost: a\r\n\r\n", &long];
        for request in requests {
            let said = said(&responder(Some("<p>wait</p>")), request.as_bytes()).await;
            let (head, body) = said.split_once("\r\n\r\n").expect("a head");
            assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{head}");
            for line in ["retry-after: 7", "cache-control: no-store", "connection: close", "content-length: 11"] {
                assert!(head.lines().any(|given| given == line), "{line} is not in {head}");
            }
            assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
            assert_eq!(body, "<p>wait</p>");
        }
    }

    #[tokio::test]
    async fn without_a_page_there_is_a_plain_one_that_tries_again() {
        let said = said(&responder(None), b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(said.contains("<meta http-equiv=\"refresh\" content=\"7\">"), "{said}");
    }

    #[tokio::test]
    async fn a_head_request_gets_no_body_and_nonsense_an_error() {
        let head = said(&responder(Some("<p>wait</p>")), b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 503 ") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(head.contains("content-length: 11"), "{head}");
        let nonsense = said(&responder(None), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await;
        assert!(nonsense.starts_with("HTTP/1.1 400 "), "{nonsense}");
        let large = format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: {}\r\n\r\n", "a".repeat(MOST_HEAD));
        assert!(said(&responder(None), large.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    }

    #[tokio::test]
    async fn who_asks_nothing_is_closed_after_a_while() {
        for request in ["", "GET / HT"] {
            let begun = std::time::Instant::now();
            assert_eq!(said(&responder(None), request.as_bytes()).await, "");
            assert!(begun.elapsed() >= HEAD_TIME && begun.elapsed() < HEAD_TIME * 2, "{:?}", begun.elapsed());
        }
    }
}
