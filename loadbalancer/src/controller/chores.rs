//! What takes time: done in a task of its own, one after the other, so that it never keeps the controller waiting.

use std::net::IpAddr;

use anyhow::{Context, Result};
use socket2::Socket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::event::Event;
use crate::network::policy::PolicyRoute;
use crate::network::prober::Prober;
use crate::network::vip::AssignedVips;
use crate::network::{Link, Network};

/// Something to do about the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chore {
    /// Binds probes to channels by these routes, and by no others.
    Policies {
        first_mark: u32,
        routes: Vec<PolicyRoute>,
    },
    /// Opens what probes through VIPs come from, with this name for its interface. [`Event::Prober`] tells what came of it.
    OpenProber(String),
    RemoveLink(String),
    /// Has the VIPs on an interface, and no others of ours on any.
    Vips {
        interface: Option<String>,
        vips: Vec<IpAddr>,
    },
}

/// Where chores go.
#[derive(Clone)]
pub struct Chores(mpsc::UnboundedSender<Chore>);

impl Chores {
    /// Takes nothing but place in a list: how often something is asked for is bounded by who asks.
    pub fn ask(&self, chore: Chore) {
        if self.0.send(chore).is_err() {
            tracing::debug!("nobody is left to do what is to be done about the network");
        }
    }
}

/// Who does them.
pub struct Worker {
    network: Network,
    chores: mpsc::UnboundedReceiver<Chore>,
    events: mpsc::Sender<Event>,
    /// VIPs on interfaces that are our doing.
    assigned: AssignedVips,
}

/// What is left when all chores are done.
pub struct Left {
    pub network: Network,
    /// VIPs on interfaces.
    pub assigned: AssignedVips,
}

impl Worker {
    pub fn new(network: Network, events: mpsc::Sender<Event>) -> (Self, Chores) {
        let (sender, chores) = mpsc::unbounded_channel();
        (Self { network, chores, events, assigned: AssignedVips::default() }, Chores(sender))
    }

    /// Does what has been asked for until now, before there is a loop to tell. Gives what there is to tell.
    ///
    /// # Errors
    /// Of the first chore that fails.
    pub async fn begin(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Ok(chore) = self.chores.try_recv() {
            match chore {
                Chore::OpenProber(interface) => {
                    events.push(Event::Prober(Ok(open_prober(&self.network, &interface).await?)))
                }
                chore => events.extend(self.run(chore).await),
            }
        }
        Ok(events)
    }

    /// Has the VIPs on an interface.
    ///
    /// # Errors
    /// There is no such interface, or it does not take them.
    pub async fn assign(&mut self, interface: Option<&str>, vips: &[IpAddr]) -> Result<()> {
        self.assigned = assign(&self.network, interface, vips).await?;
        Ok(())
    }

    /// Does chores until nobody can ask for any more.
    pub fn spawn(mut self) -> JoinHandle<Left> {
        tokio::spawn(async move {
            while let Some(chore) = self.chores.recv().await {
                if let Some(event) = self.run(chore).await
                    && self.events.send(event).await.is_err()
                {
                    tracing::debug!("the controller has ended before what it asked for was done");
                }
            }
            Left { network: self.network, assigned: self.assigned }
        })
    }

    /// What goes wrong is logged, or told by the event.
    async fn run(&mut self, chore: Chore) -> Option<Event> {
        match chore {
            Chore::Policies { first_mark, routes } => {
                self.set_policies(first_mark, routes).await;
                None
            }
            Chore::OpenProber(interface) => {
                let opened = open_prober(&self.network, &interface).await;
                Some(Event::Prober(opened.map_err(|error| format!("{error:#}"))))
            }
            Chore::RemoveLink(interface) => {
                if let Err(error) = self.network.remove_link(&interface).await {
                    tracing::warn!(%interface, %error, "the interface of checks through VIPs stays for a while");
                }
                None
            }
            Chore::Vips { interface, vips } => {
                self.reassign(interface.as_deref(), &vips).await;
                None
            }
        }
    }

    /// What goes wrong is logged; probes then fail with a reason of their own.
    async fn set_policies(&self, first_mark: u32, routes: Vec<PolicyRoute>) {
        if let Err(error) = self.network.set_policy_routes(first_mark, &routes).await {
            tracing::error!(%error, "probes cannot be bound to channels");
        }
    }

    /// What goes wrong is logged; the next time tries again.
    async fn reassign(&mut self, interface: Option<&str>, vips: &[IpAddr]) {
        match assign(&self.network, interface, vips).await {
            Ok(now) => self.assigned = std::mem::take(&mut self.assigned).replace_with(now, &self.network).await,
            Err(error) => tracing::error!(%error, "the VIPs are assigned as before"),
        }
    }
}

/// Opens what probes through VIPs come from, and the socket by which what has waited is sent on.
///
/// # Errors
/// What the kernel refuses.
pub async fn open_prober(network: &Network, interface: &str) -> Result<(Prober, Socket)> {
    let prober = Prober::open(network, interface).await?;
    let frames =
        prober.packet_socket().await.context("cannot open a packet socket, by which what has waited is sent on")?;
    Ok((prober, frames))
}

/// The interface that gets the VIPs, if there is to be one.
///
/// # Errors
/// There is no such interface.
pub fn vip_interface(network: &Network, interface: Option<&str>) -> Result<Option<Link>> {
    let Some(interface) = interface else { return Ok(None) };
    let link = network.link(interface).with_context(|| {
        format!("there is no interface {interface}\nhelp: correct `vip_interface` in [gateway]; `ip link` lists them")
    })?;
    Ok(Some(link))
}

async fn assign(network: &Network, interface: Option<&str>, vips: &[IpAddr]) -> Result<AssignedVips> {
    match vip_interface(network, interface)? {
        Some(link) => Ok(AssignedVips::assign(network, &link, vips.iter().copied()).await?),
        None => Ok(AssignedVips::default()),
    }
}
