//! The echo side of a server: what it gets, with its name in front. TCP by lines, UDP by datagrams.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::libc::in6_pktinfo;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::select;

use super::connection::{Open, reset_on_close};
use super::state::State;

/// Longest line, in bytes. A client that sends more is cut off.
const MAX_LINE: u64 = 65_536;
/// Largest payload of a datagram, in bytes.
const MAX_DATAGRAM: usize = 65_507;

pub(super) async fn serve_tcp(mut stream: TcpStream, mut open: Open) {
    let state = Arc::clone(open.state());
    select! {
        // How a connection ended shows at the client, which records it.
        _ended = echo_lines(&mut stream, &state) => {}
        () = open.reset_asked() => reset_on_close(&stream),
    }
}

async fn echo_lines(stream: &mut TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = format!("{} ", state.name).into_bytes();
        let length = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        if length == 0 || line.last() != Some(&b'\n') {
            return Ok(());
        }
        writer.write_all(&line).await?;
    }
}

pub(super) async fn serve_udp(socket: UdpSocket, state: Arc<State>) {
    let prefix = format!("{} ", state.name).into_bytes();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        let received = socket.async_io(Interest::READABLE, || receive(&socket, &mut buffer)).await;
        let sent = match received {
            Ok((length, client, local)) => {
                state.count_datagram();
                let datagram = [&prefix, &buffer[..length]].concat();
                socket.async_io(Interest::WRITABLE, || send(&socket, &datagram, client, local)).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            // An ICMP error about an earlier reply shows here, too.
            eprintln!("lab: {}: UDP echo: {error}", state.name);
        }
    }
}

/// Length, client, and the address that it sent to. IPv4 is in its IPv6 form.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SockaddrIn6, in6_pktinfo)> {
    let mut slices = [IoSliceMut::new(buffer)];
    let mut control = nix::cmsg_space!(in6_pktinfo);
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
    let local = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
        _ => None,
    });
    match (message.address, local) {
        (Some(client), Some(local)) => Ok((message.bytes, client, local)),
        _ => Err(io::Error::other("a datagram without addresses")),
    }
}

fn send(socket: &UdpSocket, datagram: &[u8], client: SockaddrIn6, local: in6_pktinfo) -> io::Result<()> {
    // Without an interface the route decides: a virtual address is on the loopback interface.
    let source = in6_pktinfo { ipi6_ifindex: 0, ..local };
    let control = [ControlMessage::Ipv6PacketInfo(&source)];
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(datagram)], &control, MsgFlags::empty(), Some(&client))?;
    Ok(())
}
