//! A site, from the server's side: nothing has to run.

use std::path::Path;

use super::super::report::listener_report;
use super::super::site::Files;
use super::super::{bundle, site};
use super::Examination;
use super::files::{SOON_DAYS, dates};
use crate::admin::{self, api};
use crate::config::{Settings, Transport};
use crate::gate::{self, Material, Severity};
use crate::pki::{self, CertificateInfo, RevocationList};

pub(super) fn examine(settings: &Settings, examination: &mut Examination) {
    let host = pki::host_names();
    match Material::load(settings, &host, examination.now) {
        Ok(material) => {
            examination.good(format!("{} and all that it names can be used", settings.file.display()));
            for finding in &material.findings {
                match finding.severity {
                    Severity::Note => examination.note(finding.what.clone()),
                    Severity::Warning => {
                        let (what, mend) = split(&finding.what);
                        examination.warn(what, mend);
                    }
                }
            }
            for weak in gate::weak_passwords(settings, &material.directory) {
                let (what, mend) = split(&weak);
                examination.warn(what, mend);
            }
        }
        Err(error) => {
            for what in error.0 {
                let (what, mend) = split(&what);
                examination.problem(what, mend);
            }
        }
    }
    certificates(settings, examination);
    bundles(settings, examination);
    open_to_whom(settings, examination);
    running(settings, examination);
}

/// What is wrong, and what our sentences say behind it.
fn split(text: &str) -> (String, String) {
    match text.rsplit_once("; ").or_else(|| text.rsplit_once(": ").filter(|(_, rest)| rest.starts_with('`'))) {
        Some((what, mend)) => (what.to_owned(), mend.to_owned()),
        None => (text.to_owned(), "`lockgate serve --check` says the same".to_owned()),
    }
}

fn certificates(settings: &Settings, examination: &mut Examination) {
    let ca = CertificateInfo::read(&settings.ca_certificate()).ok();
    if let Some(ca) = &ca {
        dates(ca, &format!("the CA {}", ca.subject), "`lockgate ca rotate` begins a new one", examination);
        if ca.days_left(examination.now) >= SOON_DAYS {
            examination.good(format!("the CA {} is good until {}", ca.subject, ca.not_after_date()));
        }
    }
    let key = settings.ca_key();
    if key.exists() && !bundle::is_protected(&key) && !settings.self_renew && settings.enrolment.is_none() {
        examination.note(format!("{}: the CA's key is here and under no passphrase; `lockgate ca passphrase` puts it under one, and it may leave this machine", key.display()));
    }
    for tls in settings.tls_files() {
        let Ok(info) = CertificateInfo::read(&tls.certificate) else { continue };
        let shown = tls.certificate.display();
        dates(
            &info,
            &format!("the server's certificate {shown}"),
            "`lockgate server renew` makes a new one (`self-renew: true` has the broker do so)",
            examination,
        );
        if !info.for_server {
            examination.problem(
                format!("{shown} is not for servers: its extended key usage says otherwise"),
                "`lockgate server renew` makes one that is",
            );
        }
        if ca.as_ref().is_some_and(|ca| ca.subject == info.subject) {
            examination.problem(
                format!(
                    "{shown} and its CA have the same subject ({}): verifiers take it for self-signed",
                    info.subject
                ),
                "`lockgate ca import` into a new folder makes a certificate with a name of its own",
            );
        }
        if info.days_left(examination.now) >= SOON_DAYS {
            let names: Vec<String> = info.names.iter().map(ToString::to_string).collect();
            examination.good(format!("{shown} is good until {} and names {}", info.not_after_date(), names.join(", ")));
        }
    }
    list(&settings.crl(), examination);
}

fn list(path: &Path, examination: &mut Examination) {
    let Ok(bytes) = std::fs::read(path) else { return };
    let lists = RevocationList::parse_all(&bytes).unwrap_or_default();
    if let Some(end) = lists.first().and_then(|list| list.next_update).filter(|end| *end <= examination.now) {
        examination.warn(
            format!(
                "{}: the revocation list was to be replaced on {}: servers that go by it refuse every client",
                path.display(),
                end.date()
            ),
            "`lockgate ca crl` signs it anew",
        );
    }
}

fn bundles(settings: &Settings, examination: &mut Examination) {
    let folder = Files::of(settings).bundles;
    let mut names: Vec<_> =
        std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    names.sort();
    for bundle_folder in names.iter().filter(|path| path.is_dir()) {
        let name = bundle_folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Ok(info) = CertificateInfo::read(&bundle_folder.join("client.crt")) {
            dates(
                &info,
                &format!("{name}'s certificate"),
                &format!("`lockgate client renew {name}`, then copy its bundle"),
                examination,
            );
            if info.is_v1 {
                examination.warn(
                    format!("{name}'s certificate is X.509 version 1, which this broker refuses"),
                    format!("`lockgate client renew {name}` makes a version 3 one"),
                );
            }
            if !info.for_client {
                examination.problem(
                    format!("{name}'s certificate is not for clients: its extended key usage says otherwise"),
                    format!("`lockgate client renew {name}`"),
                );
            }
        }
        if let Some(Err(failure)) = bundle::is_consistent(bundle_folder) {
            examination.problem(failure.message, format!("`lockgate client renew {name} --new-key` makes both anew"));
        }
    }
}

fn open_to_whom(settings: &Settings, examination: &mut Examination) {
    for listener in &settings.listeners {
        let report = listener_report(listener);
        let what = format!(
            "port {}: {}, open to {}, with {}",
            report.address, report.transport, report.open_to, report.demands
        );
        let remote = listener.address.is_remote();
        match (listener.rules.allow_anonymous, remote, &listener.transport) {
            (true, true, _) => examination.warn(what, "whoever reaches it may come in: take `allow-anonymous: true` out of it"),
            (false, true, Transport::Tcp) => examination.warn(what, "whoever is on the way reads passwords and messages: `address: loopback` closes it to the network; `lockgate client env --all --level tls --out DIR` makes bundles for TLS"),
            _ => examination.note(what),
        }
    }
}

fn running(settings: &Settings, examination: &mut Examination) {
    if !admin::is_data_taken(&settings.data) {
        return examination.note("no broker runs on this site: `lockgate serve` starts it");
    }
    match site::ask::<api::Status>(settings, "/status", None::<&()>) {
        Ok(status) => {
            let levels = status.connections;
            examination.good(format!(
                "the broker runs (pid {}): {} clients, {} of them without TLS",
                status.pid,
                levels.plain + levels.tls + levels.mtls,
                levels.plain
            ));
        }
        Err(error) => examination.warn(
            format!("a broker runs on this site and does not say how it is: {error}"),
            "ask as root, or as its user",
        ),
    }
}
