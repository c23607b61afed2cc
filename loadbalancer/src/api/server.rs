//! Where the admin interface and metrics listen.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

use super::http::serve;
use super::{metrics, routes};
use crate::config::Admin;
use crate::controller::Request;

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

/// The admin socket, which is removed when the controller ends.
#[derive(Debug)]
pub struct AdminListener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for AdminListener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the admin socket was gone already");
        }
    }
}

impl AdminListener {
    /// Binds the socket; one that a crashed controller has left is replaced.
    ///
    /// # Errors
    /// If another controller answers there, or the socket cannot be made.
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

    /// Passes requests on to the controller until the task ends.
    pub async fn serve(self, requests: mpsc::Sender<Request>) {
        serve("the admin socket", &self.listener, move |request| routes::answer(request, requests.clone())).await;
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot serve metrics on {address}: {source}\nhelp: choose another `listen` in [metrics]; `ss -ltnp` shows who has it"
)]
pub struct MetricsError {
    address: SocketAddr,
    source: io::Error,
}

/// Where metrics are scraped.
#[derive(Debug)]
pub struct MetricsListener(TcpListener);

impl MetricsListener {
    /// # Errors
    /// If the address cannot be bound.
    pub async fn bind(address: SocketAddr) -> Result<Self, MetricsError> {
        Ok(Self(TcpListener::bind(address).await.map_err(|source| MetricsError { address, source })?))
    }

    /// Answers scrapes until the task ends.
    pub async fn serve(self, requests: mpsc::Sender<Request>) {
        serve("metrics", &self.0, move |request| metrics::answer(request, requests.clone())).await;
    }
}
