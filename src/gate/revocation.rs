//! Revocation lists that somebody else keeps, before a listener goes by them.

use std::path::Path;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use time::OffsetDateTime;

use crate::pki::{CertificateInfo, RevocationList};

/// What a listener goes by, and what there is to say about it.
#[derive(Default)]
pub(super) struct Revocations {
    pub(super) lists: Vec<CertificateRevocationListDer<'static>>,
    /// Issuer (RFC 2253) and serial number.
    pub(super) revoked: Vec<(String, Vec<u8>)>,
    pub(super) warnings: Vec<String>,
}

impl Revocations {
    /// Reads the lists in `bytes` for what `cas` signed. One that is a CA's and not signed by it is no list at all;
    /// one of a CA that is not trusted here has no effect, and one whose time is over goes on to be obeyed: both
    /// are said, and neither keeps anybody out.
    pub(super) fn read(
        path: &Path,
        bytes: &[u8],
        cas: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<Revocations, String> {
        let path = path.display();
        let lists = RevocationList::parse_all(bytes).map_err(|error| format!("{path}: {error}"))?;
        let cas: Vec<(&CertificateDer<'_>, String)> =
            cas.iter().filter_map(|ca| Some((ca, CertificateInfo::parse(ca).ok()?.subject))).collect();
        let mut kept: Vec<RevocationList> = Vec::new();
        let mut read = Revocations::default();
        for list in lists {
            let mut named = cas.iter().filter(|(_, subject)| *subject == list.issuer).peekable();
            if named.peek().is_none() {
                read.warnings.push(format!(
                    "{path}: a list of {}, which is no CA of this listener's clients: it has no effect",
                    list.issuer
                ));
                continue;
            }
            if !named.any(|(ca, _)| list.is_signed_by(ca)) {
                return Err(format!("{path}: the list of {} was not signed by it", list.issuer));
            }
            // The first that is found for an issuer is asked: only the newest is given.
            match kept.iter_mut().find(|known| known.issuer == list.issuer) {
                Some(known) if list.is_newer_than(known) => *known = list,
                Some(_) => {}
                None => kept.push(list),
            }
        }
        for list in kept {
            if let Some(next) = list.next_update.filter(|_| list.is_outdated(now)) {
                read.warnings.push(format!(
                    "{path}: the list of {} was to be replaced on {}: what it revokes stays out, what was revoked since \
                     is not known here; fetch the new one",
                    list.issuer,
                    next.date()
                ));
            }
            read.revoked.extend(list.serials.into_iter().map(|serial| (list.issuer.clone(), serial)));
            read.lists.push(list.der);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject;
    use time::Duration;

    use super::*;
    use crate::pki::{Authority, KeyType, ListWanted, Reason, Revocation, random_serial};

    #[test]
    fn a_list_counts_only_if_a_ca_of_the_listener_signed_it_and_the_newest_wins() {
        let now = OffsetDateTime::now_utc();
        let ca = |site: &str| {
            let authority = Authority::create(site, KeyType::EcdsaP256, 100, now).unwrap().0;
            let der = CertificateDer::from_pem_slice(authority.certificate_pem.as_bytes()).unwrap();
            (authority, der)
        };
        let ((ours, ours_der), (other, other_der)) = (ca("ours"), ca("other"));
        let list = |authority: &Authority, count: usize, at: OffsetDateTime| {
            let one = |_| Revocation { serial: random_serial().to_vec(), at, reason: Reason::Unspecified };
            let revoked: Vec<Revocation> = (0..count).map(one).collect();
            authority.revocation_list(&ListWanted { revoked: &revoked, before: None, days: 1, now: at }).unwrap()
        };
        let read =
            |text: &str, cas: &[CertificateDer<'_>]| Revocations::read(Path::new("x.crl"), text.as_bytes(), cas, now);
        let (older, newer) = (list(&ours, 1, now - Duration::hours(2)), list(&ours, 2, now));
        for text in [format!("{older}{newer}"), format!("{newer}{older}")] {
            let both = read(&text, &[ours_der.clone(), other_der.clone()]).unwrap();
            assert_eq!((both.lists.len(), both.revoked.len(), both.warnings.len()), (1, 2, 0));
        }
        let foreign = read(&list(&other, 1, now), std::slice::from_ref(&ours_der)).unwrap();
        assert!(foreign.lists.is_empty() && foreign.warnings[0].contains("it has no effect"), "{:?}", foreign.warnings);
        let outdated = read(&list(&ours, 1, now - Duration::days(3)), std::slice::from_ref(&ours_der)).unwrap();
        assert!(outdated.lists.len() == 1 && outdated.warnings[0].contains("fetch the new one"));
        // The issuer's name is there, its signature is not.
        let mut der = RevocationList::parse_all(newer.as_bytes()).unwrap()[0].der.to_vec();
        *der.last_mut().unwrap() ^= 1;
        let forged = Revocations::read(Path::new("x.crl"), &der, &[ours_der], now);
        assert!(forged.is_err_and(|error| error.contains("was not signed by it")));
    }
}
