//! Held flows: connections that stay open and exchange a few bytes again and again, and notice when they break or when
//! another server answers.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use crate::lab::events::{WaitError, wait_until};
use crate::lab::netns::Namespace;
use crate::lab::runtime::{Runtime, RuntimeError};

/// Longest datagram that an echo server sends back to a held flow, in bytes.
const MAX_REPLY: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone, Debug)]
pub struct Hold {
    /// An echo server, or a virtual address in front of some.
    pub target: SocketAddr,
    pub protocol: Protocol,
    pub flows: usize,
    /// Time from one exchange of a flow to its next.
    pub every: Duration,
    /// Of an exchange, and of the connect. A TCP flow breaks after it; a UDP flow counts a loss and goes on.
    pub timeout: Duration,
    pub max_time: Duration,
}

/// One flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowReport {
    /// The flow's own end; none if it never got one.
    pub local: Option<SocketAddr>,
    /// The server that answered last.
    pub server: Option<String>,
    pub exchanges: u64,
    /// Datagrams without an answer in time.
    pub lost: u64,
    /// Every change of server: from, to.
    pub moves: Vec<(String, String)>,
    /// Why the flow ended before its time.
    pub broken: Option<String>,
}

impl Hold {
    pub fn start(self, namespace: &Namespace) -> Result<Held, RuntimeError> {
        let runtime = Runtime::start(namespace)?;
        let flows: Vec<Flow> = (0..self.flows).map(|_| Flow::default()).collect();
        for flow in &flows {
            runtime.spawn(keep(self.clone(), flow.clone()));
        }
        Ok(Held { flows, _runtime: runtime })
    }
}

/// Flows that are being held. Dropping it closes them.
#[derive(Debug)]
pub struct Held {
    flows: Vec<Flow>,
    _runtime: Runtime,
}

impl Held {
    pub fn reports(&self) -> Vec<FlowReport> {
        self.flows.iter().map(|flow| flow.report().clone()).collect()
    }

    /// Waits until every flow that is not broken has made `count` more exchanges, and some flow has.
    pub fn wait_exchanges(&self, count: u64, deadline: Duration) -> Result<(), WaitError> {
        let before: Vec<u64> = self.reports().iter().map(|flow| flow.exchanges).collect();
        let what = format!("{count} more exchanges on each of {} held flows", self.flows.len());
        wait_until(&what, deadline, || {
            let reports = self.reports();
            let mut alive = reports.iter().zip(&before).filter(|(flow, _)| flow.broken.is_none()).peekable();
            alive.peek().is_some() && alive.all(|(flow, before)| flow.exchanges >= before + count)
        })
    }

    /// Flows by the server that answered last.
    pub fn by_server(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for server in self.reports().into_iter().filter_map(|flow| flow.server) {
            *counts.entry(server).or_default() += 1;
        }
        counts
    }

    pub fn broken(&self) -> Vec<FlowReport> {
        self.reports().into_iter().filter(|flow| flow.broken.is_some()).collect()
    }

    pub fn moved(&self) -> Vec<FlowReport> {
        self.reports().into_iter().filter(|flow| !flow.moves.is_empty()).collect()
    }
}

#[derive(Clone, Debug, Default)]
struct Flow(Arc<Mutex<FlowReport>>);

impl Flow {
    fn report(&self) -> MutexGuard<'_, FlowReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered_by(&self, server: &str) {
        let mut report = self.report();
        report.exchanges += 1;
        if let Some(before) = report.server.replace(server.to_owned())
            && before != server
        {
            report.moves.push((before, server.to_owned()));
        }
    }
}

async fn keep(hold: Hold, flow: Flow) {
    let end = Instant::now() + hold.max_time;
    let kept = match hold.protocol {
        Protocol::Tcp => timeout_at(end, keep_tcp(&hold, &flow)).await,
        Protocol::Udp => timeout_at(end, keep_udp(&hold, &flow)).await,
    };
    // An elapsed time is the proper end.
    if let Ok(Err(error)) = kept {
        flow.report().broken = Some(error.to_string());
    }
}

/// Ends with an error only.
async fn keep_tcp(hold: &Hold, flow: &Flow) -> io::Result<()> {
    let late = |what: &str| io::Error::new(io::ErrorKind::TimedOut, format!("no {what} within {:?}", hold.timeout));
    let stream = timeout(hold.timeout, TcpStream::connect(hold.target)).await.map_err(|_| late("connection"))??;
    stream.set_nodelay(true)?;
    flow.report().local = Some(stream.local_addr()?);
    let mut stream = BufReader::new(stream);
    let mut ticks = ticks(hold);
    for number in 0u64.. {
        ticks.tick().await;
        stream.write_all(format!("{number}\n").as_bytes()).await?;
        let mut reply = String::new();
        timeout(hold.timeout, stream.read_line(&mut reply)).await.map_err(|_| late("answer"))??;
        match answer(&reply, number) {
            Some(server) => flow.answered_by(server),
            None if reply.is_empty() => return Err(io::Error::other("closed by the server")),
            None => return Err(io::Error::other(format!("`{reply}` is no answer to {number}"))),
        }
    }
    Ok(())
}

/// Ends with an error only.
async fn keep_udp(hold: &Hold, flow: &Flow) -> io::Result<()> {
    let any = if hold.target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    // Answers from elsewhere are not received.
    socket.connect(hold.target).await?;
    flow.report().local = Some(socket.local_addr()?);
    let mut ticks = ticks(hold);
    for number in 0u64.. {
        ticks.tick().await;
        match timeout(hold.timeout, exchange_udp(&socket, number)).await {
            Ok(Ok(server)) => flow.answered_by(&server),
            // Lost, or refused by an ICMP error: either way this datagram has no answer.
            Err(_) | Ok(Err(_)) => flow.report().lost += 1,
        }
    }
    Ok(())
}

async fn exchange_udp(socket: &UdpSocket, number: u64) -> io::Result<String> {
    socket.send(format!("{number}\n").as_bytes()).await?;
    let mut buffer = [0; MAX_REPLY];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // A late answer to an earlier datagram is passed over.
        if let Some(server) = answer(&String::from_utf8_lossy(&buffer[..length]), number) {
            return Ok(server.to_owned());
        }
    }
}

/// The server in an answer to `number`.
fn answer(reply: &str, number: u64) -> Option<&str> {
    let (server, echoed) = reply.strip_suffix('\n')?.split_once(' ')?;
    (echoed.parse() == Ok(number)).then_some(server)
}

fn ticks(hold: &Hold) -> tokio::time::Interval {
    let mut ticks = interval(hold.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
