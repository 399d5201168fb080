//! The client's own files: CA, certificate and key.

use std::path::Path;

use super::super::dial::Target;
use super::Examination;
use crate::client::Trust;
use crate::pki::{self, CertificateInfo};

/// From so many days before its end on, a certificate is spoken of.
pub(super) const SOON_DAYS: i64 = 30;

pub(super) fn examine(target: &Target, examination: &mut Examination) {
    let Some(trust) = &target.trust else { return };
    if let Some(ca) = &trust.ca {
        authority(ca, examination);
    }
    if let Some((certificate, key)) = &trust.identity {
        identity(trust, certificate, key, examination);
    }
}

fn authority(path: &Path, examination: &mut Examination) {
    let shown = path.display();
    let all = match CertificateInfo::read_all(path) {
        Ok(all) => all,
        Err(error) => {
            return examination.problem(
                format!("the CA's file cannot be used: {error}"),
                "fetch it anew: it is `ca.crt` of the client's bundle, and pki/ca.crt of the broker's site",
            );
        }
    };
    for ca in &all {
        if !ca.is_ca && !ca.is_v1 {
            let what = format!("{shown}: {} is no CA (basic constraints), so nothing is verified with it", ca.subject);
            examination.problem(what, "name the certificate of the CA that signed the broker's, not the broker's own");
        }
        dates(
            ca,
            &format!("the CA {} in {shown}", ca.subject),
            "the broker's owner makes a new one: `lockgate ca rotate`",
            examination,
        );
    }
}

fn identity(trust: &Trust, certificate: &Path, key: &Path, examination: &mut Examination) {
    let shown = certificate.display();
    let info = match CertificateInfo::read(certificate) {
        Ok(info) => info,
        Err(error) => {
            return examination
                .problem(format!("the client's certificate cannot be used: {error}"), "copy the bundle anew");
        }
    };
    let name = info.common_name.clone().unwrap_or_else(|| "NAME".to_owned());
    dates(
        &info,
        &format!("the client's certificate {shown}"),
        &format!("`lockgate client renew {name}` on the broker's machine, then copy the bundle"),
        examination,
    );
    if info.is_v1 {
        let what = format!("{shown} is an X.509 v1 certificate, as `openssl x509 -req` makes it without extensions");
        examination.warn(what, format!("most servers refuse it; a version 3 one: `lockgate client add {name}`, or `lockgate client sign {name} REQUEST`"));
    }
    if !info.for_client {
        let what = format!("{shown} is not for clients: its extended key usage says otherwise");
        examination.problem(what, format!("have one made for a client: `lockgate client add {name}`"));
    }
    if info.common_name.is_none() {
        examination.warn(
            format!("{shown} has no common name: brokers take the client's name from it"),
            "have one made with CN=NAME",
        );
    }
    if let Some(weak) = info.weak_signature {
        examination
            .problem(format!("{shown} is signed with {weak}, which nobody accepts any more"), "have a new one made");
    }
    let cas = trust.ca.as_ref().and_then(|ca| CertificateInfo::read_all(ca).ok()).unwrap_or_default();
    if cas.iter().any(|ca| ca.subject == info.subject) {
        let what =
            format!("{shown} and its CA have the same subject ({}): verifiers take it for self-signed", info.subject);
        examination.problem(what, "make the certificates anew with subjects that differ; `lockgate init` does");
    }
    match pki::check_secret(key) {
        Err(error @ pki::FileError::Loose { .. }) => {
            examination.warn(format!("the client's key: {error}"), format!("chmod 600 {}", key.display()));
        }
        Err(error) => {
            return examination.problem(
                format!("the client's key cannot be read: {error}"),
                "copy the bundle anew, or become the user that it is for",
            );
        }
        Ok(()) => {}
    }
    let Ok(pem) = std::fs::read(key) else { return };
    match pki::load_key(&pem).and_then(|key| pki::key_matches(&key, &info)) {
        Ok(true) => {
            examination.good(format!("the client's certificate is {}, and its key belongs to it", info.subject))
        }
        Ok(false) => examination.problem(
            format!("{} does not belong to the certificate {shown}", key.display()),
            "copy both from one bundle",
        ),
        Err(error) => examination.problem(format!("{}: {error}", key.display()), "copy the bundle anew"),
    }
}

/// Of a certificate: not yet, no longer, or not for long.
pub(super) fn dates(info: &CertificateInfo, whose: &str, mend: &str, examination: &mut Examination) {
    let (now, days) = (examination.now, info.days_left(examination.now));
    if info.not_before > now {
        let what = format!("{whose} is valid from {} on, and this clock says {}", info.not_before.date(), now.date());
        examination
            .problem(what, "compare the clocks of both machines (`date -u`); a device needs the time before TLS");
    } else if days < 0 {
        examination.problem(format!("{whose} expired on {}", info.not_after_date()), mend);
    } else if days < SOON_DAYS {
        examination.warn(format!("{whose} expires in {days} days, on {}", info.not_after_date()), mend);
    }
}
