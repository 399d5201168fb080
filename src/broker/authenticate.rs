//! Re-authentication (MQTT 5 section 4.12.1); the first exchange is the gate's.

use std::time::Instant;

use super::Core;
use super::connect::Farewell;
use super::connection::{Authentication, ConnectionId};
use super::outbox::{Closing, Outbox};
use super::violation::Violation;
use crate::auth::Step;
use crate::codec::{self, Auth, Packet, UserProperties};
use crate::types::ReasonCode;

impl Core {
    /// AUTH from a client.
    pub(super) fn auth(&mut self, now: Instant, id: ConnectionId, packet: &Auth<'_>, out: &mut impl Outbox) {
        let methods = self.options.methods.clone();
        let Some(connection) = self.connection_mut(id) else { return };
        // [MQTT-4.12.0-5]: always the method of CONNECT; without one there is no AUTH.
        let session = connection.session;
        let is_it = |authentication: &&mut Box<Authentication>| Some(&*authentication.method) == packet.method;
        let Some(authentication) = connection.authentication.as_mut().filter(is_it) else {
            return self.violate(now, id, Violation::UnexpectedAuth, out);
        };
        match packet.reason {
            // [MQTT-4.12.1-1]
            ReasonCode::ReAuthenticate => {
                let Some(method) = methods.find(&authentication.method) else {
                    return self.violate(now, id, Violation::UnexpectedAuth, out);
                };
                authentication.exchange = Some(method.begin());
            }
            ReasonCode::ContinueAuthentication if authentication.exchange.is_some() => {}
            _ => return self.violate(now, id, Violation::UnexpectedAuth, out),
        }
        let exchange = authentication.exchange.as_mut().expect("there, or begun above");
        match exchange.step(packet.data.unwrap_or_default()) {
            Step::Continue(data) => self.send_auth(now, id, ReasonCode::ContinueAuthentication, Some(&data), out),
            Step::Admit { identity, data } => {
                authentication.exchange = None;
                // The session is of the identity that made it.
                if self.sessions[session as usize].identity.as_ref() != Some(&identity) {
                    return self.refuse_again(now, id, out);
                }
                self.send_auth(now, id, ReasonCode::Success, data.as_deref(), out);
            }
            Step::Refuse(_) => self.refuse_again(now, id, out),
        }
    }

    fn send_auth(
        &mut self,
        now: Instant,
        id: ConnectionId,
        reason: ReasonCode,
        data: Option<&[u8]>,
        out: &mut impl Outbox,
    ) {
        let Some(connection) = self.connection(id) else { return };
        let packet = Packet::Auth(Auth {
            reason,
            method: connection.authentication.as_ref().map(|authentication| &*authentication.method),
            data,
            reason_string: None,
            user_properties: UserProperties::default(),
        });
        let mut bytes = Vec::new();
        codec::encode(&mut bytes, &packet, connection.version);
        let max = connection.packet_size_max;
        if bytes.len() > max as usize {
            // [MQTT-3.1.2-24]
            let too_large = Violation::AnswerTooLarge { size: bytes.len(), max };
            return self.violate(now, id, too_large, out);
        }
        out.write(id, &bytes);
    }

    /// [MQTT-4.12.1-2]: DISCONNECT with the reason, then the connection ends.
    fn refuse_again(&mut self, now: Instant, id: ConnectionId, out: &mut impl Outbox) {
        self.say_goodbye(id, Farewell::NotAuthenticated, out);
        self.finish(now, id, Closing::NotAuthenticated, out);
    }
}
