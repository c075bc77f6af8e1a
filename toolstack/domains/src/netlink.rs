//! Linux' netlink sockets: the few network changes we make (rtnetlink(7)), and news of devices.

use crate::patience::Patience;
use ferroxen_xlconfig::Mac;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_sys::protocols::{NETLINK_KOBJECT_UEVENT, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use std::io;

/// The group that hears of network devices (`linux/rtnetlink.h`).
const RTNLGRP_LINK: u32 = 1;

/// The group in which the kernel itself speaks of its devices (udev speaks in another).
const KERNEL_UEVENTS: u32 = 1;

/// The address of a guest's device in Domain 0: so high that a bridge never takes it for its own.
pub const PORT_MAC: Mac = Mac([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);

/// What may be changed about a network device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkChange<'a> {
    /// Its name.
    Name(&'a str),
    /// Its largest packet.
    Mtu(u32),
    /// Its Ethernet address.
    Address(Mac),
    /// The bridge that it is a port of.
    Bridge(u32),
    /// It begins to work.
    Up,
}

/// A socket on which something comes whenever devices come or go; what, has to be looked up.
pub struct News {
    socket: Socket,
}

impl News {
    /// Of network devices.
    pub fn of_links() -> io::Result<News> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.add_membership(RTNLGRP_LINK)?;
        Ok(News { socket })
    }

    /// Of all devices, as udev hears them.
    pub fn of_devices() -> io::Result<News> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.bind(&SocketAddr::new(0, KERNEL_UEVENTS))?;
        Ok(News { socket })
    }

    /// Waits for something to happen. `false`: nothing did in time.
    pub fn wait(&self, patience: Patience<'_>) -> io::Result<bool> {
        if !patience.ready(&self.socket)? {
            return Ok(false);
        }
        match self.socket.recv_from_full() {
            // More came than the socket could hold: something has happened for sure.
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::NOBUFS.raw_os_error()) => Err(error),
            _ => Ok(true),
        }
    }
}

/// A way to the kernel's network devices.
pub struct Links {
    socket: Socket,
    sequence: u32,
}

impl Links {
    /// Opens a socket.
    pub fn open() -> io::Result<Links> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Links { socket, sequence: 0 })
    }

    /// Makes an empty bridge.
    pub fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
        match self.ask(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL) {
            // Somebody else was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Changes a device.
    pub fn change(&mut self, index: u32, change: LinkChange<'_>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.extend(match change {
            LinkChange::Name(name) => Some(LinkAttribute::IfName(name.to_owned())),
            LinkChange::Mtu(mtu) => Some(LinkAttribute::Mtu(mtu)),
            LinkChange::Address(mac) => Some(LinkAttribute::Address(mac.0.to_vec())),
            LinkChange::Bridge(bridge) => Some(LinkAttribute::Controller(bridge)),
            LinkChange::Up => None,
        });
        if change == LinkChange::Up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn ask(&mut self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            match answer.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                _ => {}
            }
        }
    }
}
