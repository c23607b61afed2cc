//! Where the admin interface and metrics listen.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

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
    #[error("{} is there, and no socket\nhelp: move it away, or name another file as `socket` in [admin]", .0.display())]
    NoSocket(PathBuf),
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
        // What somebody has put in its place is not ours to remove.
        let removed = is_socket(&self.path).is_ok_and(|it| it) && fs::remove_file(&self.path).is_ok();
        if !removed {
            tracing::debug!("the admin socket was gone already");
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
        if is_socket(&path)? {
            match BlockingStream::connect(&path) {
                Ok(_) => return Err(AdminError::Taken(path)),
                Err(_) => fs::remove_file(&path).map_err(failed)?,
            }
        }
        // Bound under another name until its mode is set, so that nobody gets in between.
        let hidden = path.with_extension("new");
        if is_socket(&hidden)? {
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

/// Whether there is a socket; false: nothing is there.
///
/// # Errors
/// If something else is there, which is not ours to remove.
fn is_socket(path: &Path) -> Result<bool, AdminError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => Ok(true),
        Ok(_) => Err(AdminError::NoSocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(AdminError::Bind { path: path.to_owned(), source }),
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

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;
    use crate::api::client;
    use crate::api::types::Change;

    fn admin(name: &str) -> Admin {
        let directory = env::temp_dir().join(format!("loadbalancer-admin-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory of its own");
        Admin { socket: directory.join("admin.sock"), mode: 0o600 }
    }

    fn remove(admin: &Admin) {
        fs::remove_dir_all(admin.socket.parent().expect("it has one")).expect("it is there");
    }

    #[tokio::test]
    async fn a_file_in_the_place_of_the_socket_stays() {
        for (name, taken) in [("socket", "admin.sock"), ("new", "admin.new")] {
            let admin = admin(name);
            let file = admin.socket.with_file_name(taken);
            fs::write(&file, "of somebody else").expect("the directory is ours");
            let error = AdminListener::bind(&admin).await.expect_err("it is a file").to_string();
            assert!(error.contains("no socket") && error.contains(taken), "{error}");
            assert_eq!(fs::read_to_string(&file).expect("it is there"), "of somebody else");
            remove(&admin);
        }
    }

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced() {
        let admin = admin("left");
        drop(std::os::unix::net::UnixListener::bind(&admin.socket).expect("the directory is ours"));
        drop(AdminListener::bind(&admin).await.expect("nobody answers there"));
        assert!(!admin.socket.exists(), "it is removed in the end");
        remove(&admin);
    }

    #[tokio::test]
    async fn a_file_that_took_the_place_of_the_socket_stays() {
        let admin = admin("late");
        let listener = AdminListener::bind(&admin).await.expect("nothing is there");
        fs::remove_file(&admin.socket).expect("it is there");
        fs::write(&admin.socket, "of somebody else").expect("the directory is ours");
        drop(listener);
        assert_eq!(fs::read_to_string(&admin.socket).expect("it is there"), "of somebody else");
        remove(&admin);
    }

    #[tokio::test]
    async fn changes_come_with_the_name_as_it_was_given() {
        let admin = admin("names");
        let (sender, mut requests) = mpsc::channel(1);
        let serving = tokio::spawn(AdminListener::bind(&admin).await.expect("nothing is there").serve(sender));
        let controller = tokio::spawn(async move {
            while let Some(Request::Change(server, _, reply)) = requests.recv().await {
                drop(reply.send(Ok(server)));
            }
        });
        for name in ["web/web1", "web1?x", "web1#x", "web1%20", "wéb/1 2", "../snapshot"] {
            let changed = client::change(&admin.socket, name, &Change::Drain).await.expect("it is answered");
            assert_eq!(changed, name);
        }
        client::change(&admin.socket, "web1", &Change::Weight(1_000)).await.expect("it is the largest");
        let error = client::change(&admin.socket, "web1", &Change::Weight(1_001)).await.expect_err("it is too large");
        assert!(error.to_string().contains("0 to 1000"), "{error}");
        serving.abort();
        controller.abort();
        remove(&admin);
    }
}
