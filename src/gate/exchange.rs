//! Extended authentication (MQTT 5 section 4.12) before a client is let in.

use super::admit::{Arrival, Stop, describe};
use super::link::Link;
use crate::auth::{self, Exchange, Step};
use crate::codec::{self, Auth, Connect, DecodeError, Packet, UserProperties, Version};
use crate::types::{Identity, ReasonCode};

/// Who a method has proved the client to be.
pub(super) struct Proof {
    pub(super) identity: Identity,
    pub(super) data: Option<Vec<u8>>,
}

impl Arrival {
    /// Goes through the exchange that CONNECT began. `rest` is what came behind CONNECT.
    pub(super) async fn exchange(
        &self,
        link: &mut Link,
        connect: &Connect<'_>,
        method: &str,
        rest: &mut Vec<u8>,
    ) -> Result<Proof, Stop> {
        let refused = |reason, why: String| Stop::Refused {
            version: Some(connect.version),
            reason,
            kind: "authentication-method",
            why,
            client: describe(connect),
        };
        let Some(known) = self.gate.methods.find(method) else {
            // [MQTT-4.12.0-1]
            let why = format!("the authentication method {:?} is not known here", auth::cut(method));
            return Err(refused(ReasonCode::BadAuthenticationMethod, why));
        };
        let mut exchange: Box<dyn Exchange> = known.begin();
        let mut step = exchange.step(connect.properties.authentication_data.unwrap_or_default());
        loop {
            match step {
                Step::Admit { identity, data } => return Ok(Proof { identity, data }),
                // [MQTT-4.12.0-4]
                Step::Refuse(reason) => return Err(refused(reason, format!("the method {method:?} refused it"))),
                Step::Continue(data) => {
                    // [MQTT-4.12.0-2], [MQTT-4.12.0-5]
                    let packet = Packet::Auth(Auth {
                        reason: ReasonCode::ContinueAuthentication,
                        method: Some(method),
                        data: Some(&data),
                        reason_string: None,
                        user_properties: UserProperties::default(),
                    });
                    let mut bytes = Vec::new();
                    codec::encode(&mut bytes, &packet, Version::V5);
                    if self.terms.get().is_some_and(|terms| bytes.len() > terms.size_max) {
                        // [MQTT-3.1.2-24]
                        return Err(refused(ReasonCode::PacketTooLarge, "AUTH is larger than it takes".to_owned()));
                    }
                    link.write(&bytes).await?;
                }
            }
            step = match self.next_auth(link, method, rest).await {
                Ok(data) => exchange.step(&data),
                Err(Wrong::Stop(stop)) => return Err(stop),
                Err(Wrong::Packet(reason, why)) => return Err(refused(reason, why)),
            };
        }
    }

    /// The data of the client's next packet, which has to be AUTH 0x18 of this method
    /// [MQTT-4.12.0-3], [MQTT-3.1.2-30].
    async fn next_auth(&self, link: &mut Link, method: &str, rest: &mut Vec<u8>) -> Result<Vec<u8>, Wrong> {
        let size_max = self.current.admission.connect_size_max;
        let frame = loop {
            match codec::frame(rest, size_max)? {
                Some(frame) => break frame,
                None => self.read_more(link, rest).await.map_err(Wrong::Stop)?,
            }
        };
        let data = match codec::decode(rest, frame, Version::V5)? {
            Packet::Auth(auth) if auth.reason == ReasonCode::ContinueAuthentication && auth.method == Some(method) => {
                auth.data.unwrap_or_default().to_vec()
            }
            Packet::Disconnect(_) => return Err(Wrong::Stop(Stop::Quiet("gave up authenticating"))),
            _ => {
                let why = "while it authenticates a client sends AUTH 0x18 of its method, or DISCONNECT".to_owned();
                return Err(Wrong::Packet(ReasonCode::ProtocolError, why));
            }
        };
        rest.drain(..frame.end);
        Ok(data)
    }
}

enum Wrong {
    Stop(Stop),
    Packet(ReasonCode, String),
}

impl From<DecodeError> for Wrong {
    fn from(error: DecodeError) -> Wrong {
        Wrong::Packet(error.reason(), error.to_string())
    }
}
