//! The way to the broker: names, TCP, TLS and the server's certificate.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{AlertDescription, CertificateError, Error, ProtocolVersion};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;

use super::super::dial::Target;
use super::files::dates;
use super::{Examination, mqtt};
use crate::client::{
    Stream, Trust, Versions, Way, WayError, describe, is_about_client, is_about_versions, observing, resolve,
    tls_error, verify,
};
use crate::pki::CertificateInfo;

/// How long each step may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn examine(target: &Target, topic: Option<&str>, examination: &mut Examination) {
    if target.unix.is_none() && !reach(target, examination).await {
        return;
    }
    if let Some(trust) = &target.trust
        && let Err(error) = observing(trust)
    {
        // Where it is the key's own, that was said.
        if !examination.is_broken() {
            examination.problem(
                format!("the client's files cannot be used: {error}"),
                "copy the bundle anew: `lockgate client env NAME` writes it",
            );
        }
        return;
    }
    match &target.trust {
        Some(trust) if target.unix.is_none() => tls(target, trust, examination).await,
        // What is secret does not go where it cannot be understood.
        _ if !plain(target, examination).await => return,
        _ => {}
    }
    // What TLS found to be wrong keeps every client out.
    if !examination.is_broken() || target.trust.is_none() {
        mqtt::examine(target, topic, examination).await;
    }
    if target.trust.is_some() {
        other_doors(target, examination).await;
    }
}

/// Whether anything answers there.
async fn reach(target: &Target, examination: &mut Examination) -> bool {
    let (host, port) = (&target.host, target.port);
    let addresses = match resolve(host, port).await {
        Ok(addresses) => addresses,
        Err(error) => {
            examination.problem(
                error.to_string(),
                format!("is it spelled right? `getent hosts {host}`; where there is no DNS, an address will do that the server's certificate names"),
            );
            return false;
        }
    };
    let mut answers = false;
    for address in &addresses {
        let began = Instant::now();
        let (what, mend) = match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {
                answers = true;
                examination.good(format!("{address} takes connections ({} ms)", began.elapsed().as_millis()));
                continue;
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => (
                format!("{address}: connection refused: nothing listens on port {port} there"),
                "is the broker running (`lockgate status` on its machine), and on this port and address (`ss -ltn`)? One that listens on loopback is for its own machine alone".to_owned(),
            ),
            Ok(Err(error)) => (format!("{address}: {error}"), "is the network there? `ping` and `ip route` tell".to_owned()),
            Err(_) => (
                format!("{address}: no answer within {} s", PATIENCE.as_secs()),
                format!("a firewall drops it, or the machine is off: on the broker's, let port {port} in (`ufw allow {port}/tcp`)"),
            ),
        };
        // One family that does not answer is no harm where the other does.
        match addresses.len() > 1 {
            true => examination.note(what),
            false => examination.problem(what, mend),
        }
    }
    if !answers && addresses.len() > 1 {
        examination.problem(
            format!("connection refused or not answered at every address of {host}"),
            format!("is the broker running (`lockgate status` on its machine), and does it listen on port {port} to other machines (`ss -ltn`)?"),
        );
    }
    answers
}

/// A handshake by itself; the certificate is looked at afterwards.
async fn shake(target: &Target, trust: &Trust) -> Result<(Vec<CertificateDer<'static>>, ProtocolVersion), WayError> {
    let config = observing(trust).map_err(|error| WayError::Connect {
        address: target.host.clone(),
        error: io::Error::other(error.to_string()),
    })?;
    let way = Way::Network { host: target.host.clone(), port: target.port, tls: Some(Arc::new(config)) };
    let stream = way.open(PATIENCE).await?;
    let Stream::Tls(stream) = &stream else { unreachable!("asked for above") };
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().unwrap_or_default().iter().map(|der| der.clone().into_owned()).collect();
    Ok((chain, session.protocol_version().unwrap_or(ProtocolVersion::TLSv1_3)))
}

async fn tls(target: &Target, trust: &Trust, examination: &mut Examination) {
    let port = target.port;
    let (chain, _) = match shake(target, trust).await {
        Ok(shaken) => shaken,
        Err(error) => return no_tls(target, &error, examination).await,
    };
    // Not what fails for another reason: a client's certificate, say.
    let mut spoken = Vec::new();
    for (versions, name) in [(Versions::Only12, "1.2"), (Versions::Only13, "1.3")] {
        match shake(target, &Trust { versions, ..trust.clone() }).await {
            Err(WayError::Tls { error, .. }) if is_about_versions(&error) => {}
            _ => spoken.push(name),
        }
    }
    match spoken[..] {
        ["1.2", "1.3"] => examination.good(format!("TLS 1.2 and 1.3 are spoken on port {port}")),
        ["1.2"] => examination.warn(
            format!("TLS 1.2 alone is spoken on port {port}"),
            "clients that insist on 1.3 are kept out; let the broker speak both (`tls: min-version: \"1.2\"` speaks 1.3 too)",
        ),
        ["1.3"] => examination.note(format!(
            "TLS 1.3 alone is spoken on port {port}: clients that only know 1.2 (older microcontrollers) are kept out"
        )),
        _ => {}
    }
    certificate(target, trust, &chain, examination);
}

async fn no_tls(target: &Target, error: &WayError, examination: &mut Examination) {
    let port = target.port;
    if mqtt::speaks_plain(target).await {
        return examination.problem(
            format!("plain MQTT is spoken on port {port}, and the client is to use TLS"),
            "dial the TLS port (8883, mostly), or take TLS off the client: no --ca, MQTT_USE_TLS=false",
        );
    }
    let mend = match error {
        WayError::Tls { error, .. }
            if matches!(tls_error(error), Some(Error::AlertReceived(AlertDescription::HandshakeFailure))) =>
        {
            "if the broker requires a client certificate, name one: --cert and --key, or a bundle of level mtls (`lockgate client env NAME --level mtls`)"
        }
        _ => {
            "the broker's log says why it ended the handshake; `lockgate doctor --offline` on its machine looks at its certificate"
        }
    };
    let what = match error {
        WayError::Tls { error, .. } if is_about_client(error) => {
            return examination
                .problem(format!("client certificate error: {}", describe(error)), mqtt::mend_certificate(target));
        }
        WayError::Tls { error, .. } => describe(error),
        other => other.to_string(),
    };
    examination.problem(format!("no TLS on port {port}: {what}"), mend);
}

fn certificate(target: &Target, trust: &Trust, chain: &[CertificateDer<'static>], examination: &mut Examination) {
    let Some(info) = chain.first().and_then(|der| CertificateInfo::parse(der).ok()) else {
        return examination.problem(
            "the server shows no certificate that can be read",
            "have a new one made: `lockgate server renew`",
        );
    };
    let names: Vec<String> = info.names.iter().map(ToString::to_string).collect();
    let of = format!("the server's certificate ({})", info.subject);
    dates(
        &info,
        &of,
        "on the broker's machine: `lockgate server renew` (with `self-renew: true` it does so itself)",
        examination,
    );
    for above in chain.iter().skip(1).filter_map(|der| CertificateInfo::parse(der).ok()) {
        let whose = format!("the CA {} that the server shows", above.subject);
        dates(&above, &whose, "on the broker's machine: `lockgate ca rotate` makes a new CA", examination);
    }
    if info.is_v1 {
        examination.problem(
            format!("{of} is X.509 version 1, as `openssl x509 -req` makes it without extensions: it has no names, and most clients refuse it"),
            "on the broker's machine: `lockgate ca import` takes such a CA over, and makes a certificate with names",
        );
    }
    if !info.for_server {
        examination.problem(
            format!("{of} is not for servers: its extended key usage says otherwise"),
            "have one made for a server",
        );
    }
    if let Some(weak) = info.weak_signature {
        examination
            .problem(format!("{of} is signed with {weak}, which nobody accepts any more"), "have a new one made");
    }
    let cas = trust.ca.as_ref().and_then(|ca| CertificateInfo::read_all(ca).ok()).unwrap_or_default();
    if cas.iter().any(|ca| ca.subject == info.subject && ca.fingerprint != info.fingerprint) {
        let what = format!(
            "certificate verify failed: the server and its CA have the same subject ({}), so OpenSSL, and what is built on it, takes the certificate for self-signed",
            info.subject
        );
        return examination.problem(what, "make the certificates anew with subjects that differ; `lockgate init` does");
    }
    let named = verify(trust, chain, &target.host, false);
    let dialled = verify(trust, chain, &target.host, true);
    if dialled.is_ok() {
        examination.good(format!(
            "{of} is good for {} and until {}, and of a CA that this client trusts",
            target.host,
            info.not_after_date()
        ));
        return;
    }
    if named.is_ok() {
        let list = if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") };
        if trust.any_name {
            return examination.warn(
                format!("the certificate does not name {}: it is for {list}; the client does not mind (--insecure, MQTT_TLS_INSECURE), so whoever has any certificate of that CA can be its broker", target.host),
                format!("dial one of these, or on the broker's machine: `lockgate server renew --san {}`", target.host),
            );
        }
        return examination.problem(
            format!("certificate verify failed: the certificate does not name {}: it is for {list}", target.host),
            format!("dial one of these, or on the broker's machine: `lockgate server renew --san {}`", target.host),
        );
    }
    let Err(error) = named else { return };
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    // Its dates have been spoken of.
    if let Error::InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }) = error
    {
        return;
    }
    let is_self_signed = info.subject == info.issuer;
    let (what, mend) = match () {
        () if is_self_signed && !info.is_ca => (
            "certificate verify failed: the server's certificate is signed by itself, so nobody vouches for it"
                .to_owned(),
            "on the broker's machine: `lockgate init` makes a CA and a certificate of it",
        ),
        () if trust.ca.is_none() => (
            format!("certificate verify failed: its CA ({}) is none that this system trusts", info.issuer),
            "name the broker's CA: --ca ca.crt (of the client's bundle)",
        ),
        () => (
            format!(
                "certificate verify failed: it is of the CA {}, and the client trusts {}",
                info.issuer,
                cas.iter().map(|ca| ca.subject.clone()).collect::<Vec<_>>().join(", ")
            ),
            "copy pki/ca.crt of the broker's site to the client; if the CA was replaced, make the bundles anew (`lockgate client env NAME`)",
        ),
    };
    examination.problem(what, mend);
}

/// Where no TLS is wanted: does the port speak it? `false`: nothing can go on.
async fn plain(target: &Target, examination: &mut Examination) -> bool {
    if target.unix.is_some() {
        return true;
    }
    let port = target.port;
    // A server that ends the handshake by an alert speaks TLS, too.
    let speaks_tls = |shaken: Result<_, WayError>| match shaken {
        Ok(_) => true,
        Err(WayError::Tls { error, .. }) => matches!(tls_error(&error), Some(Error::AlertReceived(_))),
        Err(_) => false,
    };
    if !mqtt::speaks_plain(target).await && speaks_tls(shake(target, &Trust::default()).await) {
        examination.problem(
            format!("TLS is spoken on port {port}, and the client sends plain bytes"),
            "switch TLS on at the client (--ca ca.crt, MQTT_USE_TLS=true), or dial the plain port (1883, mostly)",
        );
        return false;
    }
    if is_local(&target.host) {
        examination.note(format!("port {port} is without TLS, which is good enough on this machine alone"));
        return true;
    }
    examination.warn(
        format!("port {port} is without TLS: whoever is on the way reads passwords and messages"),
        "where it leaves this machine use the TLS port: `lockgate client env NAME --level tls` makes the bundle",
    );
    true
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What else is open on that host.
async fn other_doors(target: &Target, examination: &mut Examination) {
    if target.unix.is_some() || target.port == 1883 {
        return;
    }
    let other = Target { port: 1883, trust: None, ..target.clone() };
    if mqtt::speaks_plain(&other).await {
        examination.note(format!(
            "plain MQTT is open from here too, on port 1883 of {}: who still comes that way shows `lockgate status`",
            target.host
        ));
        if mqtt::lets_anybody_in(&other).await {
            examination.warn(
                format!("anybody may come in by port 1883 of {}, without a name", target.host),
                "take `allow-anonymous: true` out of that listener (mosquitto.conf: allow_anonymous false)",
            );
        }
    }
}
