//! The controller's side of the admin interface.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::{Changed, Failure};
use crate::config::Admin;
use crate::control::controller::Request;
use crate::control::snapshot::{API_VERSION, Change};

/// No request has a longer body.
const MAX_BODY: usize = 64 * 1024;
const HEADER_TIME_OUT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(
        "another controller answers on {}\nhelp: stop it first (`systemctl stop loadbalancer`), or give this one another \
         `socket` in [admin] and another `pin_directory`",
        .0.display()
    )]
    Taken(PathBuf),
    #[error("cannot listen on {}: {source}\nhelp: correct `socket` in [admin]; its directory must exist", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// A bound socket, which is removed when the controller ends.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the admin socket was gone already");
        }
    }
}

impl Listener {
    /// Binds the socket; one that a crashed controller has left is replaced.
    pub async fn bind(admin: &Admin) -> Result<Self, AdminError> {
        let path = admin.socket.clone();
        let failed = |source| AdminError::Bind { path: path.clone(), source };
        if path.exists() {
            match BlockingStream::connect(&path) {
                Ok(_) => return Err(AdminError::Taken(path)),
                Err(_) => fs::remove_file(&path).map_err(failed)?,
            }
        }
        // Bound under another name until its mode is set, so that nobody gets in between.
        let hidden = path.with_extension("new");
        if hidden.exists() {
            fs::remove_file(&hidden).map_err(failed)?;
        }
        let listener = UnixListener::bind(&hidden).map_err(failed)?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(admin.mode)).map_err(failed)?;
        fs::rename(&hidden, &path).map_err(failed)?;
        Ok(Self { listener, path })
    }

    pub async fn serve(self, requests: mpsc::Sender<Request>, _pins: PathBuf) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the admin socket cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let requests = requests.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(request, requests.clone()));
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIME_OUT)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "an admin connection ended");
                }
            });
        }
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(request: HttpRequest<Incoming>, requests: mpsc::Sender<Request>) -> Result<Answer, hyper::Error> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let Some(path) = path.strip_prefix(&format!("/v{API_VERSION}/")) else {
        let error =
            format!("this controller speaks version {API_VERSION} of the admin interface (/v{API_VERSION}/...)");
        return Ok(failure(StatusCode::NOT_FOUND, error));
    };
    Ok(match (method, path) {
        (Method::GET, "snapshot") => match ask(&requests, Request::Snapshot).await {
            Some(snapshot) => json(StatusCode::OK, &snapshot),
            None => stopping(),
        },
        (Method::GET, "quality") => match ask(&requests, Request::Quality).await {
            Some(report) => json(StatusCode::OK, &report),
            None => stopping(),
        },
        (Method::GET, "channels") => match ask(&requests, Request::Channels).await {
            Some(report) => json(StatusCode::OK, &report),
            None => stopping(),
        },
        (Method::GET, "standby") => match ask(&requests, Request::Standby).await {
            Some(report) => json(StatusCode::OK, &report),
            None => stopping(),
        },
        (Method::GET, "queue") => match ask(&requests, Request::Queue).await {
            Some(report) => json(StatusCode::OK, &report),
            None => stopping(),
        },
        (Method::POST, "reload") => match ask(&requests, Request::Reload).await {
            Some(Ok(())) => json(StatusCode::OK, &serde_json::json!({})),
            Some(Err(error)) => failure(StatusCode::CONFLICT, error),
            None => stopping(),
        },
        (Method::POST, path) if path.starts_with("servers/") => {
            let server = path["servers/".len()..].to_owned();
            let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => return Ok(failure(StatusCode::BAD_REQUEST, error.to_string())),
            };
            match serde_json::from_slice::<Change>(&body) {
                Ok(change) => match ask(&requests, |reply| Request::Change(server, change, reply)).await {
                    Some(Ok(server)) => json(StatusCode::OK, &Changed { server }),
                    Some(Err(error)) => failure(StatusCode::NOT_FOUND, error),
                    None => stopping(),
                },
                Err(error) => failure(StatusCode::BAD_REQUEST, format!("no change: {error}")),
            }
        }
        (_, path) => failure(StatusCode::NOT_FOUND, format!("there is no /v{API_VERSION}/{path}")),
    })
}

async fn ask<T>(requests: &mpsc::Sender<Request>, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    requests.send(request(reply)).await.ok()?;
    answer.await.ok()
}

fn stopping() -> Answer {
    failure(StatusCode::SERVICE_UNAVAILABLE, "the controller is stopping".to_owned())
}

fn failure(status: StatusCode, error: String) -> Answer {
    json(status, &Failure { error })
}

fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(bytes)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// Whether a controller answers on a socket.
pub fn is_alive(path: &Path) -> bool {
    BlockingStream::connect(path).is_ok()
}
