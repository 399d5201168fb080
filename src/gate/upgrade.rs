//! The HTTP request that begins a WebSocket (RFC 6455 section 4.2), and its answer.

use std::io::Write;

use tungstenite::error::{Error, ProtocolError};
use tungstenite::handshake::machine::TryParse;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::http::{self, HeaderMap, StatusCode, header};

/// Bytes of a request's head (section 10.4 leaves limits to us).
pub(super) const HEAD_MAX: usize = 8 * 1024;

/// A request that was accepted.
#[derive(Debug)]
pub(super) struct Upgrade {
    /// Bytes of its head: what follows are frames.
    pub(super) used: usize,
    pub(super) response: Vec<u8>,
}

/// A request that was not.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) why: &'static str,
}

impl Refusal {
    /// It asks for no WebSocket, and may ask for something else.
    pub(super) fn is_no_upgrade(&self) -> bool {
        self.status == StatusCode::UPGRADE_REQUIRED
    }

    /// The connection is closed after it.
    pub(super) fn response(&self) -> Vec<u8> {
        let response = http::Response::builder()
            .status(self.status)
            .header(header::CONNECTION, "close, Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::ALLOW, "GET")
            .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
            .header(header::CONTENT_LENGTH, self.why.len() + 1);
        let mut bytes = Vec::new();
        write_response(&mut bytes, &response.body(()).expect("valid headers")).expect("a Vec takes all");
        writeln!(bytes, "{}", self.why).expect("a Vec takes all");
        bytes
    }
}

/// Section 4.2: answers the request at the front of `bytes`; `None`: its head is not there whole. `origins`: the pages
/// whose scripts may connect, `*` for all; what is no browser sends no Origin (section 10.2).
pub(super) fn upgrade(bytes: &[u8], origins: &[String]) -> Result<Option<Upgrade>, Refusal> {
    let (used, mut request) = match Request::try_parse(&bytes[..bytes.len().min(HEAD_MAX)]) {
        Ok(Some(found)) => found,
        Ok(None) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(None) => return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too large"),
        Err(error) => return Err(explain(&error)),
    };
    let headers = request.headers_mut();
    // tungstenite looks at the first line only; a list may come in several.
    let connection: Vec<&str> = tokens(headers, header::CONNECTION).collect();
    if let Ok(value) = connection.join(",").parse() {
        headers.insert(header::CONNECTION, value);
    }
    let mut response = create_response(&request).map_err(|error| explain(&error))?;
    let headers = request.headers();
    let Some(host) = headers.get(header::HOST) else {
        return refuse(StatusCode::BAD_REQUEST, "Host is missing");
    };
    // A page of this very host and port, which paho says that it is, could only be the broker's own.
    let is_own = |origin: &[u8]| {
        let authority = origin.strip_prefix(b"https://").or(origin.strip_prefix(b"http://"));
        authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host.as_bytes())) && !could_be_rebound(host)
    };
    if let Some(origin) = headers.get(header::ORIGIN).map(header::HeaderValue::as_bytes)
        && !is_own(origin)
        && !origins.iter().any(|allowed| allowed == "*" || origin.eq_ignore_ascii_case(allowed.as_bytes()))
    {
        return refuse(StatusCode::FORBIDDEN, "scripts of this Origin may not connect here");
    }
    // [MQTT-6.0.0-3], [MQTT-6.0.0-4]
    let offers = |name: &str| tokens(headers, header::SEC_WEBSOCKET_PROTOCOL).any(|offered| offered == name);
    let Some(chosen) = ["mqtt", "mqttv3.1"].into_iter().find(|name| offers(name)) else {
        return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Protocol has to offer mqtt");
    };
    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(chosen));
    let mut written = Vec::new();
    write_response(&mut written, &response).map_err(|error| explain(&error))?;
    Ok(Some(Upgrade { used, response: written }))
}

/// Whether a stranger's page could have a name of its own lead here (DNS rebinding): any name but localhost.
fn could_be_rebound(host: &header::HeaderValue) -> bool {
    let text = host.to_str().unwrap_or_default();
    let name = text.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let name = name.map_or(text, |(name, _)| name).trim_start_matches('[').trim_end_matches(']');
    name != "localhost" && name.parse::<std::net::IpAddr>().is_err()
}

fn refuse<T>(status: StatusCode, why: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, why })
}

/// The items of a header that is a list, on however many lines.
fn tokens(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

/// Sections 4.2.1 and 4.4: what a request lacks.
fn explain(error: &Error) -> Refusal {
    use ProtocolError::{
        InvalidSecWebSocketKey, MissingConnectionUpgradeHeader, MissingSecWebSocketKey,
        MissingSecWebSocketVersionHeader, MissingUpgradeWebSocketHeader, WrongHttpMethod, WrongHttpVersion,
    };
    let (status, why) = match error {
        Error::Protocol(WrongHttpMethod) => (StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET"),
        Error::Protocol(WrongHttpVersion) => (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 is needed"),
        Error::Protocol(MissingConnectionUpgradeHeader | MissingUpgradeWebSocketHeader) => {
            (StatusCode::UPGRADE_REQUIRED, "MQTT over WebSocket is served here, and nothing else")
        }
        Error::Protocol(MissingSecWebSocketVersionHeader) => (StatusCode::UPGRADE_REQUIRED, "WebSocket 13 is served"),
        Error::Protocol(MissingSecWebSocketKey | InvalidSecWebSocketKey) => {
            (StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing or not valid")
        }
        Error::Capacity(_) => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request has too many headers"),
        _ => (StatusCode::BAD_REQUEST, "this is no HTTP request"),
    };
    Refusal { status, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /any/path?x=y HTTP/1.1\r\nHost: broker:8083\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqttv3.1, mqtt\r\nOrigin: https://panel.example\r\n\r\n";

    fn ask(request: &str) -> Result<String, (u16, &'static str)> {
        let origins = ["https://panel.example".to_owned()];
        match upgrade(request.as_bytes(), &origins) {
            Ok(Some(accepted)) => Ok(String::from_utf8(accepted.response).unwrap()),
            Ok(None) => panic!("partial"),
            Err(refusal) => {
                let response = String::from_utf8(refusal.response()).unwrap();
                assert!(response.starts_with(&format!("HTTP/1.1 {}", refusal.status.as_u16())), "{response}");
                assert!(response.ends_with(&format!("\r\n\r\n{}\n", refusal.why)), "{response}");
                Err((refusal.status.as_u16(), refusal.why))
            }
        }
    }

    #[test]
    fn an_upgrade_is_answered_once_its_head_is_there() {
        for at in 0..REQUEST.len() {
            assert!(upgrade(&REQUEST.as_bytes()[..at], &["*".to_owned()]).unwrap().is_none(), "{at}");
        }
        let with_frames = format!("{REQUEST}\u{1}frames");
        let accepted = upgrade(with_frames.as_bytes(), &["*".to_owned()]).unwrap().unwrap();
        assert_eq!(accepted.used, REQUEST.len());
        let response = ask(REQUEST).unwrap();
        assert!(response.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{response}");
        assert!(response.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{response}");
        assert!(response.contains("sec-websocket-protocol: mqtt\r\n"), "{response}");
        let old = ask(&REQUEST.replace("mqttv3.1, mqtt", "other,mqttv3.1")).unwrap();
        assert!(old.contains("sec-websocket-protocol: mqttv3.1\r\n"), "{old}");
        ask(&REQUEST.replace("keep-alive, Upgrade", "keep-alive\r\nConnection: upgrade")).unwrap();
        ask(&REQUEST.replace("mqttv3.1, mqtt", "x\r\nSec-WebSocket-Protocol: mqtt")).unwrap();
        ask(&REQUEST.replace("Origin", "X-Origin")).unwrap();
        ask(&REQUEST.replace("https://panel", "HTTPS://Panel")).unwrap();
        ask(&REQUEST.replace("https://panel.example", "https://10.0.0.7:8083").replace("broker:8083", "10.0.0.7:8083"))
            .unwrap();
        let rebound = REQUEST.replace("https://panel.example", "https://broker:8083");
        assert_eq!(ask(&rebound).unwrap_err().0, 403);
    }

    #[test]
    fn refusals() {
        let status = |from: &str, to: &str| ask(&REQUEST.replace(from, to)).unwrap_err();
        assert_eq!(status("GET", "POST").0, 405);
        assert_eq!(status("HTTP/1.1", "HTTP/1.0").0, 505);
        assert_eq!(status("Upgrade: WebSocket\r\n", "").0, 426);
        assert_eq!(status("keep-alive, Upgrade", "keep-alive").0, 426);
        assert_eq!(status("Version: 13", "Version: 8"), (426, "WebSocket 13 is served"));
        assert_eq!(status("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "").0, 400);
        assert_eq!(status("dGhlIHNhbXBsZSBub25jZQ==", "short").0, 400);
        assert_eq!(status("Host: broker:8083\r\n", "").0, 400);
        assert_eq!(status("https://panel.example", "https://evil.example").0, 403);
        assert_eq!(status("https://panel.example", "null").0, 403);
        assert_eq!(status("mqttv3.1, mqtt", "chat, MQTT").0, 400);
        assert_eq!(status("Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n", "").0, 400);
        assert_eq!(status("Host:", &format!("X: {}\r\nHost:", "y".repeat(HEAD_MAX))).0, 431);
        assert_eq!(status("Host:", &("X: y\r\n".repeat(200) + "Host:")).0, 431);
        assert_eq!(status("GET /any", "\u{10}\u{c}\0\u{4}MQTT"), (400, "this is no HTTP request"));
        assert_eq!(status("/any/path?x=y", "ht!tp://[").0, 400);
    }
}
