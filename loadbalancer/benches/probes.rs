//! What probes cost: 1,000 servers on loopback, each asked once a second, for a time.
//!
//! `cargo bench -p loadbalancer --bench probes -- [seconds] [kinds]`. The servers run in a process of their own, so that
//! the figure is that of the controller's side; but on loopback the kernel does the servers' share of each packet's work
//! within the system call that sends it, so it is more than over a real network.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use loadbalancer::health::{
    AgentCheck, CheckKind, CheckSpec, Checker, HttpCheck, Part, ProbeKey, Target, TlsCheck, UdpCheck, UdpExpect,
    Verify, Via,
};
use model::ids::ServerId;
use rcgen::CertifiedKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

const SERVERS: u32 = 1_000;
const HTTP_PORT: u16 = 18_080;
const HTTPS_PORT: u16 = 18_083;
const AGENT_PORT: u16 = 18_081;
const UDP_PORT: u16 = 18_082;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        return serve();
    }
    let seconds: u64 = arguments.first().map_or(Ok(10), |seconds| seconds.parse())?;
    let chosen = &arguments[arguments.len().min(1)..];
    let mut servers =
        Command::new(std::env::current_exe()?).arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut ready = [0];
    servers.stdout.take().ok_or("its output is piped")?.read_exact(&mut ready)?;
    let request = HttpCheck::new("GET", "/", None, &[200..=399])?;
    println!("kind    answers/s  failed  median us  p99 us  share of one core");
    for (name, kind, port) in [
        ("idle", None, 0),
        ("tcp", Some(CheckKind::Tcp), HTTP_PORT),
        ("http", Some(CheckKind::Http(request.clone())), HTTP_PORT),
        ("https", Some(CheckKind::Https(request, TlsCheck::new(None, Verify::Nothing)?)), HTTPS_PORT),
        ("agent", Some(CheckKind::Agent(AgentCheck::Line { send: None })), AGENT_PORT),
        ("udp", Some(CheckKind::Udp(UdpCheck::new(b"ping".to_vec(), UdpExpect::Anything)?)), UDP_PORT),
        ("icmp", Some(CheckKind::Icmp), 0),
    ] {
        if chosen.is_empty() || chosen.iter().any(|chosen| chosen == name) {
            // As the controller has it.
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            println!("{name:7} {}", runtime.block_on(measure(kind, port, Duration::from_secs(seconds)))?);
        }
    }
    drop(servers.stdin.take());
    servers.wait()?;
    Ok(())
}

async fn measure(kind: Option<CheckKind>, port: u16, time: Duration) -> Result<String, Box<dyn std::error::Error>> {
    let (sender, mut reports) = mpsc::channel(1_024);
    let mut checker = Checker::new(sender);
    for server in 0..SERVERS {
        if let Some(kind) = &kind {
            let key = ProbeKey { server: ServerId::numbered(server), part: Part::Check };
            checker.set(key, spec(kind.clone(), (address(server), port).into()));
        }
    }
    // The first round makes what later ones find made.
    let mut begin = Instant::now() + Duration::from_secs(2);
    while tokio::time::timeout_at(begin.into(), reports.recv()).await.is_ok() {}
    begin = Instant::now();
    let before = cpu_time()?;
    let mut latencies = Vec::new();
    let mut failed = 0;
    while let Ok(Some(report)) = tokio::time::timeout_at((begin + time).into(), reports.recv()).await {
        match report.result {
            Ok(answer) => latencies.push(answer.latency),
            Err(error) => {
                if failed == 0 {
                    eprintln!("{error}");
                }
                failed += 1;
            }
        }
    }
    let share = (cpu_time()? - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    latencies.sort();
    let at = |part: f64| latencies.get((latencies.len() as f64 * part) as usize).map_or(0, Duration::as_micros);
    let rate = latencies.len() as f64 / time.as_secs_f64();
    Ok(format!("{rate:9.0} {failed:7} {:10} {:7} {:17.2} %", at(0.5), at(0.99), share * 100.0))
}

fn address(server: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x7f01_0001 + server).into()
}

fn spec(kind: CheckKind, target: SocketAddr) -> CheckSpec {
    CheckSpec {
        kind,
        target: Target {
            address: target,
            via: Via::default(),
            source_port: None,
            service: "bench".into(),
            server: target.to_string(),
        },
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
    }
}

/// Of all threads of this process, in user and kernel.
fn cpu_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let mut nanoseconds = 0;
    for task in fs::read_dir("/proc/self/task")? {
        // Finer than the ticks of `stat`.
        let times = fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += times.split_whitespace().next().ok_or("schedstat has figures")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Servers at all addresses of loopback, until the other end of standard input is closed.
fn serve() -> Result<(), Box<dyn std::error::Error>> {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["bench".to_owned()])?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::try_from(signing_key.serialize_der())?)?;
    let tls = TlsAcceptor::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ready = runtime.block_on(async {
        for (port, encrypted, reads, answer) in [
            (HTTP_PORT, false, true, ANSWER),
            (HTTPS_PORT, true, true, ANSWER),
            (AGENT_PORT, false, false, b"up 75%\n"),
        ] {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let tls = tls.clone();
            tokio::spawn(async move {
                loop {
                    // A connection that was reset before it was accepted is none.
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    let tls = encrypted.then(|| tls.clone());
                    tokio::spawn(async move {
                        match tls {
                            None => answer_once(stream, reads, answer).await,
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    answer_once(stream, reads, answer).await;
                                }
                            }
                        }
                    });
                }
            });
        }
        for server in 0..SERVERS {
            // Of its own, because it answers from where it was asked.
            let socket = tokio::net::UdpSocket::bind((address(server), UDP_PORT)).await?;
            tokio::spawn(async move {
                let mut datagram = [0; 1_024];
                while let Ok((length, peer)) = socket.recv_from(&mut datagram).await {
                    socket.send_to(&datagram[..length], peer).await.unwrap_or_default();
                }
            });
        }
        Ok::<(), std::io::Error>(())
    });
    ready?;
    std::io::stdout().write_all(b".")?;
    std::io::stdout().flush()?;
    let closed = runtime.spawn_blocking(|| std::io::stdin().read(&mut [0]));
    runtime.block_on(closed)??;
    Ok(())
}

async fn answer_once(mut stream: impl AsyncRead + AsyncWrite + Unpin, reads: bool, answer: &[u8]) {
    let mut request = [0; 1_024];
    if !reads || stream.read(&mut request).await.is_ok_and(|length| length > 0) {
        stream.write_all(answer).await.unwrap_or_default();
        // Until the probe resets it.
        stream.read(&mut request).await.unwrap_or_default();
    }
}
