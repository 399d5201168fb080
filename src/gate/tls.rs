//! What a TLS listener has: its certificate and key, whom it trusts, and the configurations that come of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite};
use time::OffsetDateTime;

use super::material::{Finding, Severity, TlsMaterial, plain, secret};
use super::openssl_like::OpensslLike;
use super::revocation::Revocations;
use super::tickets::Tickets;
use super::verifier::Remembering;
use crate::config::{ClientCerts, Faults, KeyLog, TlsFiles, TlsVersion};
use crate::pki::{self, CertificateInfo, FileError, HostNames, RevocationList};
use crate::types::CertificateId;

/// Reads and checks what a TLS listener names, and makes of it what handshakes are done with.
pub(super) struct TlsLoader<'a> {
    pub(super) files: &'a TlsFiles,
    pub(super) stands_in: bool,
    pub(super) faults: &'a Faults,
    pub(super) host: &'a HostNames,
    pub(super) now: OffsetDateTime,
    pub(super) own_cas: &'a [CertificateInfo],
    pub(super) problems: &'a mut Vec<String>,
    pub(super) findings: &'a mut Vec<Finding>,
    pub(super) revoked: &'a mut Vec<CertificateId>,
    pub(super) list_ends: &'a mut Vec<(String, OffsetDateTime)>,
}

/// Who signs clients' certificates, and what they have revoked.
struct Trust {
    roots: RootCertStore,
    /// The same, as they were read.
    cas: Vec<CertificateDer<'static>>,
    lists: Vec<RevocationList>,
}

impl TlsLoader<'_> {
    pub(super) fn load(&mut self) -> Option<(TlsMaterial, CertificateInfo)> {
        let certified = self.certified();
        let trust = match self.files.client_certs {
            ClientCerts::Off => Some(Trust { roots: RootCertStore::empty(), cas: Vec::new(), lists: Vec::new() }),
            _ => self.trust(),
        };
        let ((certified, info), trust) = certified.zip(trust)?;
        match self.configs(certified, trust) {
            Ok(tls) => Some((tls, info)),
            Err(error) => {
                self.problems.push(format!("cannot set up TLS with {}: {error}", self.files.certificate.display()));
                None
            }
        }
    }

    fn problem(&mut self, error: impl ToString) {
        self.problems.push(error.to_string());
    }

    fn content(&mut self, path: &Path, error: impl ToString) {
        self.problem(FileError::Content { path: path.to_owned(), what: error.to_string() });
    }

    /// The certificate with its key; a resolver serves an X.509 v1 certificate too, which the
    /// usual path refuses.
    fn certified(&mut self) -> Option<(CertifiedKey, CertificateInfo)> {
        let (certificate, key) = (&self.files.certificate.clone(), &self.files.key.clone());
        let chain = plain(certificate).map_err(|error| self.problem(error)).ok();
        let secret = secret(key, self.stands_in).map_err(|error| self.problem(error)).ok();
        let chain = pki::load_certificates(&chain?).map_err(|error| self.content(certificate, error)).ok();
        let loaded = pki::load_key(&secret?).map_err(|error| self.content(key, error)).ok();
        let (chain, loaded) = chain.zip(loaded)?;
        let info = CertificateInfo::parse(&chain[0]).map_err(|error| self.content(certificate, error)).ok()?;
        match pki::key_matches(&loaded, &info) {
            Ok(true) => {}
            Ok(false) => {
                let what = format!("this key does not belong to the certificate {}", certificate.display());
                self.content(key, what);
                return None;
            }
            Err(error) => {
                self.content(key, error);
                return None;
            }
        }
        if !self.faults.any_certificate {
            self.check_server(certificate, &info)?;
        }
        self.check_root(certificate, &chain);
        let signing = aws_lc_rs::sign::any_supported_type(&loaded).map_err(|error| self.content(key, error)).ok()?;
        Some((CertifiedKey::new(chain, signing), info))
    }

    fn check_server(&mut self, path: &Path, info: &CertificateInfo) -> Option<()> {
        if info.not_after <= self.now {
            let what = format!(
                "the server certificate expired on {}: every client refuses it; `lockgate server renew` makes a new one",
                info.not_after_date()
            );
            self.content(path, what);
            return None;
        }
        if info.not_before > self.now {
            self.content(
                path,
                format!("the server certificate is not valid before {}: check this machine's clock", info.not_before),
            );
            return None;
        }
        if info.is_v1 {
            let what = format!("{}: an X.509 v1 certificate, without names: modern clients refuse it", path.display());
            self.findings.push(Finding { severity: Severity::Warning, what });
        }
        if !self.own_cas.is_empty()
            && path.starts_with(self.files.client_ca.parent().unwrap_or(Path::new("")))
            && !self.own_cas.iter().any(|ca| info.is_issued_by(ca))
        {
            let what = format!(
                "{}: the server certificate was not signed by this site's CA: clients that trust the CA refuse it",
                path.display()
            );
            self.findings.push(Finding { severity: Severity::Warning, what });
        }
        let missing: Vec<String> = self
            .host
            .names
            .iter()
            .filter(|name| !info.names.contains(name) && !covered_by_wildcard(name, &info.names))
            .map(ToString::to_string)
            .collect();
        if !missing.is_empty() && !self.stands_in {
            let mend = match self.own_cas.iter().any(|ca| info.is_issued_by(ca)) {
                true => "`lockgate server renew` adds it",
                false => "have its CA make one that does",
            };
            let what = format!(
                "{}: the server certificate does not name {}: clients that dial this host so will refuse it; {mend}",
                path.display(),
                missing.join(", ")
            );
            self.findings.push(Finding { severity: Severity::Note, what });
        }
        Some(())
    }

    /// Whether what clients are told to trust verifies the chain that is from elsewhere.
    fn check_root(&mut self, path: &Path, chain: &[CertificateDer<'_>]) {
        let Some(root) = self.files.server_ca.clone() else { return };
        let trusted = plain(&root)
            .and_then(|pem| pki::load_certificates(&pem).map_err(|error| format!("{}: {error}", root.display())));
        let trusted = match trusted {
            Ok(trusted) => trusted,
            Err(error) => return self.problem(error),
        };
        let leads = chain.iter().any(|der| trusted.iter().any(|root| root == der || pki::is_signed_by(der, root)));
        if !leads {
            let what = format!(
                "{}: it does not lead to {} (server-ca), which is in clients' bundles: they refuse the server",
                path.display(),
                root.display()
            );
            self.findings.push(Finding { severity: Severity::Warning, what });
        }
    }

    fn trust(&mut self) -> Option<Trust> {
        let path = &self.files.client_ca.clone();
        let mut certificates = Vec::new();
        for path in std::iter::once(path.clone()).chain(self.files.client_ca_folder.clone()) {
            for file in self.ca_files(&path, path == self.files.client_ca)? {
                let pem = plain(&file).map_err(|error| self.problem(error)).ok()?;
                certificates.extend(pki::load_certificates(&pem).map_err(|error| self.content(&file, error)).ok()?);
            }
        }
        let lists = self.lists(&certificates)?;
        let (mut roots, mut expired, mut cas) = (RootCertStore::empty(), Vec::new(), Vec::new());
        for certificate in certificates {
            let info = CertificateInfo::parse(&certificate).map_err(|error| self.content(path, error)).ok()?;
            if !info.is_ca && !info.is_v1 {
                self.content(path, format!("{} is no CA: its basic constraints lack CA:TRUE", info.subject));
                return None;
            }
            if info.not_after <= self.now {
                expired.push(format!("the CA {} expired on {}", info.subject, info.not_after_date()));
                continue;
            }
            cas.push(certificate.clone());
            roots.add(certificate).map_err(|error| self.content(path, error)).ok()?;
        }
        // One that is left over beside another keeps nobody else out.
        match roots.is_empty() {
            true => {
                self.content(path, expired.join("; "));
                None
            }
            false => {
                let what = |expired| format!("{}: {expired}: nobody comes in by it", path.display());
                let finding = |expired| Finding { severity: Severity::Warning, what: what(expired) };
                self.findings.extend(expired.into_iter().map(finding));
                Some(Trust { roots, cas, lists })
            }
        }
    }

    /// A file, or of a folder those that OpenSSL would find: they are named by a hash and a number.
    fn ca_files(&mut self, path: &Path, is_all: bool) -> Option<Vec<PathBuf>> {
        if !path.is_dir() {
            return Some(vec![path.to_owned()]);
        }
        let is_hashed = |name: &str| {
            let hash = name.split_once('.').filter(|(hash, _)| hash.len() == 8);
            hash.is_some_and(|(hash, number)| {
                hash.bytes().all(|byte| byte.is_ascii_hexdigit()) && number.bytes().all(|byte| byte.is_ascii_digit())
            })
        };
        let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let entries = entries.map_err(|error| self.content(path, error)).ok()?;
        let mut files: Vec<PathBuf> = entries
            .into_iter()
            .filter(|entry| is_hashed(&entry.file_name().to_string_lossy()))
            .map(|entry| entry.path())
            .collect();
        files.sort();
        if files.is_empty() && is_all {
            let what = format!("no certificate in it is named by its hash: run `openssl rehash {}`", path.display());
            self.content(path, what);
            return None;
        }
        Some(files)
    }

    fn lists(&mut self, cas: &[CertificateDer<'_>]) -> Option<Vec<RevocationList>> {
        let Some(path) = &self.files.client_crl else { return Some(Vec::new()) };
        let bytes = plain(path).map_err(|error| self.problem(error)).ok()?;
        let read = Revocations::read(path, &bytes, cas).map_err(|error| self.problem(error)).ok()?;
        let warn = |what| Finding { severity: Severity::Warning, what };
        self.findings.extend(read.warnings.into_iter().map(warn));
        self.revoked.extend(read.revoked);
        self.list_ends.extend(read.ends);
        Some(read.lists)
    }

    fn configs(
        &self,
        certified: CertifiedKey,
        Trust { roots, cas, lists }: Trust,
    ) -> Result<TlsMaterial, Box<dyn std::error::Error>> {
        let mut provider = aws_lc_rs::default_provider();
        let wanted = &self.files.cipher_suites;
        if !wanted.is_empty() {
            let place =
                |suite: &SupportedCipherSuite| wanted.iter().position(|name| Some(*name) == suite.suite().as_str());
            provider.cipher_suites.retain(|suite| place(suite).is_some());
            provider.cipher_suites.sort_by_key(place);
        }
        let provider = Arc::new(provider);
        // A CA without a list revokes nothing. Where this stands in for Mosquitto all is asked below.
        let given = lists.iter().filter(|_| !self.stands_in).map(|list| list.der.clone());
        let by_roots = |roots: RootCertStore| {
            let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
            builder.with_crls(given).allow_unknown_revocation_status()
        };
        let verifier: Arc<dyn ClientCertVerifier> = match self.files.client_certs {
            ClientCerts::Off => Arc::new(NoClientAuth),
            ClientCerts::Required => Arc::new(Remembering::new(by_roots(roots).build()?)),
            ClientCerts::Optional => Arc::new(Remembering::new(by_roots(roots).allow_unauthenticated().build()?)),
        };
        let verifier = match self.stands_in && self.files.client_certs != ClientCerts::Off {
            true => {
                let lists = self.files.client_crl.as_ref().map(|_| lists);
                Arc::new(OpensslLike::new(verifier, &cas, lists))
            }
            false => verifier,
        };
        let versions: &[&rustls::SupportedProtocolVersion] =
            match self.faults.only_tls.unwrap_or(self.files.min_version) {
                TlsVersion::V12 if self.faults.only_tls.is_some() => &[&rustls::version::TLS12],
                TlsVersion::V12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
                TlsVersion::V13 => &[&rustls::version::TLS13],
            };
        let resolver = rustls::sign::SingleCertAndKey::from(certified);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(resolver));
        config.ignore_client_order = !wanted.is_empty();
        if let Some(key_log) = &self.files.key_log {
            config.key_log = Arc::new(key_log.clone());
        }
        // However many devices come back at once, each resumes: what a session needs lies with its client. The
        // keys go with this configuration, so that a reload, which may trust others, resumes nobody.
        let tickets = Tickets::new()?;
        config.ticketer = tickets.clone();
        // A client comes back once for each connection that it had.
        config.send_tls13_tickets = 1;
        let without_alpn = Arc::new(config.clone());
        config.alpn_protocols = vec![b"mqtt".to_vec()];
        Ok(TlsMaterial {
            with_alpn: Arc::new(config),
            without_alpn,
            tickets,
            client_certs: self.files.client_certs,
            client_ca: self.files.client_ca.clone(),
        })
    }
}

impl rustls::KeyLog for KeyLog {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        self.write(&format!("{label} {} {}\n", hexadecimal(client_random), hexadecimal(secret)));
    }
}

fn covered_by_wildcard(name: &pki::ServerName, names: &[pki::ServerName]) -> bool {
    let pki::ServerName::Dns(name) = name else { return false };
    let Some((_, parent)) = name.split_once('.') else { return false };
    names.contains(&pki::ServerName::Dns(format!("*.{parent}")))
}
