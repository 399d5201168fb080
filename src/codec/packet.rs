use super::properties::{PublishProperties, UserProperties, WillProperties};
use crate::types::{PacketId, QoS, ReasonCode, RetainHandling};

/// The protocol's version, told by CONNECT. Only the codec and the broker's dialect look at it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Version {
    /// MQTT 3.1: protocol name `MQIsdp`, level 3.
    V31,
    /// MQTT 3.1.1: level 4.
    V311,
    /// MQTT 5.0: level 5.
    V5,
}

impl Version {
    /// As Mosquitto's log lines have it.
    pub fn mosquitto_number(self) -> u8 {
        match self {
            Version::V31 => 1,
            Version::V311 => 2,
            Version::V5 => 5,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Version::V31 => "3.1",
            Version::V311 => "3.1.1",
            Version::V5 => "5.0",
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A control packet (MQTT 5 chapter 3), borrowed from the bytes that it was read from.
#[derive(Debug, PartialEq)]
pub enum Packet<'a> {
    Connect(Box<Connect<'a>>),
    ConnAck(Box<ConnAck<'a>>),
    Publish(Publish<'a>),
    PubAck(Ack<'a>),
    PubRec(Ack<'a>),
    PubRel(Ack<'a>),
    PubComp(Ack<'a>),
    Subscribe(Subscribe<'a>),
    SubAck(SubAck<'a>),
    Unsubscribe(Unsubscribe<'a>),
    UnsubAck(UnsubAck<'a>),
    PingReq,
    PingResp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

/// CONNECT (section 3.1).
#[derive(Debug, PartialEq, Clone)]
pub struct Connect<'a> {
    pub version: Version,
    pub clean_start: bool,
    /// Seconds; 0 means none.
    pub keep_alive: u16,
    pub properties: ConnectProperties<'a>,
    /// Empty where the server is to assign one.
    pub client_id: &'a str,
    pub will: Option<Will<'a>>,
    pub user_name: Option<&'a str>,
    pub password: Option<&'a [u8]>,
}

/// Properties of a CONNECT (section 3.1.2.11), with the standard's defaults where absent.
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct ConnectProperties<'a> {
    /// Seconds; `u32::MAX` means never. `None` where absent, which means 0.
    pub session_expiry_interval: Option<u32>,
    pub receive_maximum: u16,
    pub maximum_packet_size: Option<u32>,
    pub topic_alias_maximum: u16,
    pub request_response_information: bool,
    pub request_problem_information: bool,
    pub authentication_method: Option<&'a str>,
    pub authentication_data: Option<&'a [u8]>,
    pub user_properties: UserProperties<'a>,
}

impl Default for ConnectProperties<'_> {
    fn default() -> Self {
        ConnectProperties {
            session_expiry_interval: None,
            receive_maximum: u16::MAX,
            maximum_packet_size: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            authentication_method: None,
            authentication_data: None,
            user_properties: UserProperties::default(),
        }
    }
}

/// The Will Message of a CONNECT (section 3.1.2.5).
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Will<'a> {
    pub qos: QoS,
    pub retain: bool,
    pub properties: WillProperties<'a>,
    pub topic: &'a str,
    pub payload: &'a [u8],
}

/// CONNACK (section 3.2). Fields that are `None` are left out; before MQTT 5 only
/// `session_present` and the code are sent.
#[derive(Debug, PartialEq, Clone)]
pub struct ConnAck<'a> {
    pub session_present: bool,
    pub reason: ReasonCode,
    /// Seconds.
    pub session_expiry_interval: Option<u32>,
    pub receive_maximum: Option<u16>,
    pub maximum_qos: QoS,
    pub retain_available: bool,
    pub maximum_packet_size: Option<u32>,
    pub assigned_client_id: Option<&'a str>,
    pub topic_alias_maximum: u16,
    pub reason_string: Option<&'a str>,
    pub user_properties: UserProperties<'a>,
    pub wildcard_subscription_available: bool,
    pub subscription_identifiers_available: bool,
    pub shared_subscription_available: bool,
    /// Seconds.
    pub server_keep_alive: Option<u16>,
    pub response_information: Option<&'a str>,
    pub authentication_method: Option<&'a str>,
    pub authentication_data: Option<&'a [u8]>,
}

impl ConnAck<'_> {
    pub fn new(reason: ReasonCode) -> Self {
        ConnAck {
            session_present: false,
            reason,
            session_expiry_interval: None,
            receive_maximum: None,
            maximum_qos: QoS::ExactlyOnce,
            retain_available: true,
            maximum_packet_size: None,
            assigned_client_id: None,
            topic_alias_maximum: 0,
            reason_string: None,
            user_properties: UserProperties::default(),
            wildcard_subscription_available: true,
            subscription_identifiers_available: true,
            shared_subscription_available: true,
            server_keep_alive: None,
            response_information: None,
            authentication_method: None,
            authentication_data: None,
        }
    }
}

/// PUBLISH (section 3.3).
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Publish<'a> {
    pub dup: bool,
    pub qos: QoS,
    pub retain: bool,
    /// Empty where a topic alias stands for it.
    pub topic: &'a str,
    /// `Some` exactly at QoS 1 and 2 [MQTT-2.2.1-2].
    pub packet_id: Option<PacketId>,
    pub properties: PublishProperties<'a>,
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL and PUBCOMP (sections 3.4 to 3.7).
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Ack<'a> {
    pub packet_id: PacketId,
    pub reason: ReasonCode,
    pub reason_string: Option<&'a str>,
    pub user_properties: UserProperties<'a>,
}

impl Ack<'_> {
    pub fn new(packet_id: PacketId, reason: ReasonCode) -> Self {
        Ack { packet_id, reason, reason_string: None, user_properties: UserProperties::default() }
    }
}

/// What a subscription asks for (section 3.8.3.1).
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct SubscriptionOptions {
    pub qos: QoS,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: RetainHandling,
}

impl SubscriptionOptions {
    /// As MQTT 3.1.1 has it: a QoS alone.
    pub fn at(qos: QoS) -> SubscriptionOptions {
        SubscriptionOptions {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::SendAtSubscribe,
        }
    }

    /// The byte behind a filter.
    pub(super) fn bits(self, version: Version) -> u8 {
        match version {
            Version::V5 => {
                self.qos.bits()
                    | u8::from(self.no_local) << 2
                    | u8::from(self.retain_as_published) << 3
                    | (self.retain_handling as u8) << 4
            }
            _ => self.qos.bits(),
        }
    }
}

#[derive(Debug, PartialEq, Clone, Copy)]
pub struct SubscribeFilter<'a> {
    /// The text as sent, and whether it is a filter: an invalid one is refused by its own reason
    /// code in SUBACK, the others of the packet are granted.
    pub filter: &'a str,
    pub options: SubscriptionOptions,
}

/// SUBSCRIBE (section 3.8).
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Subscribe<'a> {
    pub packet_id: PacketId,
    pub subscription_identifier: Option<u32>,
    pub user_properties: UserProperties<'a>,
    pub filters: SubscribeFilters<'a>,
}

/// The filters of a SUBSCRIBE, checked when the packet was decoded.
#[derive(Clone, Copy)]
pub struct SubscribeFilters<'a> {
    pub(super) version: Version,
    pub(super) bytes: &'a [u8],
}

impl<'a> SubscribeFilters<'a> {
    pub fn iter(self) -> impl Iterator<Item = SubscribeFilter<'a>> {
        let mut reader = super::read::Reader::new(self.bytes);
        std::iter::from_fn(move || super::decode::subscribe_filter(&mut reader, self.version).ok())
    }
}

impl std::fmt::Debug for SubscribeFilters<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for SubscribeFilters<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

/// SUBACK (section 3.9).
#[derive(Debug, PartialEq, Clone)]
pub struct SubAck<'a> {
    pub packet_id: PacketId,
    pub reasons: Vec<ReasonCode>,
    pub reason_string: Option<&'a str>,
}

/// UNSUBSCRIBE (section 3.10).
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Unsubscribe<'a> {
    pub packet_id: PacketId,
    pub user_properties: UserProperties<'a>,
    pub filters: UnsubscribeFilters<'a>,
}

/// The filters of an UNSUBSCRIBE, checked when the packet was decoded.
#[derive(Clone, Copy)]
pub struct UnsubscribeFilters<'a> {
    pub(super) bytes: &'a [u8],
}

impl<'a> UnsubscribeFilters<'a> {
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        let mut reader = super::read::Reader::new(self.bytes);
        std::iter::from_fn(move || reader.text().ok())
    }
}

impl std::fmt::Debug for UnsubscribeFilters<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for UnsubscribeFilters<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

/// UNSUBACK (section 3.11).
#[derive(Debug, PartialEq, Clone)]
pub struct UnsubAck<'a> {
    pub packet_id: PacketId,
    /// Empty before MQTT 5.
    pub reasons: Vec<ReasonCode>,
    pub reason_string: Option<&'a str>,
}

/// DISCONNECT (section 3.14).
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Disconnect<'a> {
    pub reason: ReasonCode,
    /// Seconds; `None` leaves it as CONNECT set it.
    pub session_expiry_interval: Option<u32>,
    pub reason_string: Option<&'a str>,
    pub user_properties: UserProperties<'a>,
    pub server_reference: Option<&'a str>,
}

impl Disconnect<'_> {
    pub fn new(reason: ReasonCode) -> Self {
        Disconnect {
            reason,
            session_expiry_interval: None,
            reason_string: None,
            user_properties: UserProperties::default(),
            server_reference: None,
        }
    }
}

/// AUTH (section 3.15).
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Auth<'a> {
    pub reason: ReasonCode,
    pub method: Option<&'a str>,
    pub data: Option<&'a [u8]>,
    pub reason_string: Option<&'a str>,
    pub user_properties: UserProperties<'a>,
}
