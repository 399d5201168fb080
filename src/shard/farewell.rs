//! The last line of a connection's life: why it ended.

use tracing::{debug, info, warn};

use super::wire::{Connection, who};
use crate::broker::{Closing, Violation};
use crate::handover::Words;
use crate::types::ReasonCode;
use crate::websocket::CloseCode;

/// How a WebSocket is closed that this side ends (RFC 6455 section 7.4.1).
pub(super) fn close_code(why: Closing) -> CloseCode {
    match why {
        Closing::ByClient(_) | Closing::Lost => CloseCode::Normal,
        Closing::ShuttingDown => CloseCode::Away,
        Closing::Violation(violation) if violation.reason() == ReasonCode::PacketTooLarge => CloseCode::Size,
        Closing::Violation(_) => CloseCode::Protocol,
        Closing::StoreFailed => CloseCode::Error,
        _ => CloseCode::Policy,
    }
}

pub(super) fn say(connection: &Connection) {
    match connection.about.words {
        Words::Own => {}
        Words::Mosquitto => return say_as_mosquitto(connection),
        Words::None => return,
    }
    let number = connection.about.number;
    let name = who(connection.identity.as_ref());
    let client = &connection.client;
    let (address, listener) = (connection.about.peer, &*connection.about.listener);
    if connection.denials > 1 {
        info!(id = number, "{name} was refused {} publishes and subscriptions in all", connection.denials);
    }
    match connection.closing {
        None | Some(Closing::Lost) => {}
        Some(Closing::ByClient(reason)) => info!(id = number, "{name} disconnected ({reason})"),
        Some(Closing::Violation(violation)) => {
            info!(
                id = number,
                "{name} disconnected for a breach of the protocol: {violation} ({})",
                violation.reason()
            );
        }
        Some(Closing::TakenOver) => info!(id = number, "{name} disconnected: client {client:?} connected again"),
        Some(Closing::Kicked) => info!(id = number, "{name} disconnected by an administrator"),
        Some(Closing::Revoked) => info!(id = number, "{name} disconnected: it may not come in any more"),
        Some(Closing::CertificateExpired) => {
            warn!(
                id = number,
                "{name} disconnected: its certificate has expired; `lockgate client renew {name}` makes a new one"
            )
        }
        Some(Closing::NotAuthenticated) => warn!(id = number, "{name} disconnected: its new authentication failed"),
        Some(Closing::ShuttingDown) => debug!(id = number, "{name} disconnected: the broker stops"),
        Some(Closing::NotOwner) => {
            warn!(
                id = number,
                %address,
                listener,
                "refused client {client:?} of {name}: the session belongs to another identity (0x87 not authorized)"
            );
        }
        Some(Closing::WillInvalid) => {
            warn!(
                id = number,
                %address,
                listener,
                "refused client {client:?} of {name}: its will is not one that is taken here: its topic is too deep or too long, its payload not the UTF-8 that it says, its QoS too high, or it is to be retained"
            );
        }
        Some(Closing::WillNotAllowed) => {
            warn!(id = number, %address, listener, "refused client {client:?} of {name}: its will's topic is outside the ACL");
        }
        Some(Closing::TooManySessions) => {
            warn!(id = number, %address, listener, "refused client {client:?} of {name}: limits.sessions-max is reached");
        }
        Some(Closing::KeepAliveTooLong) => {
            warn!(id = number, %address, listener, "refused client {client:?} of {name}: its keep alive is longer than limits.keep-alive-max");
        }
        Some(Closing::StoreFailed) => {
            warn!(id = number, "{name} disconnected: the store cannot keep its messages")
        }
    }
}

/// The same in the words that people look for who had Mosquitto.
fn say_as_mosquitto(connection: &Connection) {
    let client = &connection.client;
    match connection.closing {
        None | Some(Closing::Lost) => info!("Client {client} closed its connection."),
        Some(Closing::ByClient(_)) => info!("Client {client} disconnected."),
        Some(Closing::Violation(Violation::KeepAlive)) => {
            info!("Client {client} has exceeded timeout, disconnecting.");
        }
        Some(Closing::Violation(violation)) => match violation.reason() {
            ReasonCode::MalformedPacket => info!("Client {client} disconnected due to malformed packet."),
            ReasonCode::PacketTooLarge => info!("Client {client} disconnected due to oversize packet."),
            _ => info!("Client {client} disconnected due to protocol error."),
        },
        Some(Closing::TakenOver) => info!("Client {client} already connected, closing old connection."),
        Some(Closing::NotOwner | Closing::WillNotAllowed | Closing::NotAuthenticated) => {
            info!("Client {client} disconnected, not authorised.");
        }
        Some(Closing::KeepAliveTooLong) => {
            info!("Client {client} disconnected, its keep alive is above max_keepalive.")
        }
        Some(Closing::WillInvalid) => {
            info!("Client {client} disconnected due to QoS too high or retain not supported.");
        }
        Some(Closing::Kicked | Closing::Revoked | Closing::CertificateExpired) => {
            info!("Client {client} been disconnected by administrative action.");
        }
        Some(Closing::ShuttingDown) => {}
        Some(Closing::TooManySessions | Closing::StoreFailed) => info!("Client {client} disconnected: out of room."),
    }
}
