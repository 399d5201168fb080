//! Revocation lists that somebody else keeps, before a listener goes by them.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::pki::{CertificateInfo, RevocationList};
use crate::types::CertificateId;

/// What a listener goes by, and what there is to say about it.
#[derive(Default)]
pub(super) struct Revocations {
    pub(super) lists: Vec<RevocationList>,
    pub(super) revoked: Vec<CertificateId>,
    pub(super) warnings: Vec<String>,
    /// Which list was to be replaced when.
    pub(super) ends: Vec<(String, OffsetDateTime)>,
}

impl Revocations {
    /// Reads the lists in `bytes` for what `cas` signed. One that is a CA's and not signed by it is no list at all;
    /// one of a CA that is not trusted here has no effect, which is said; one whose time is over goes on to be
    /// obeyed. Neither keeps anybody out.
    pub(super) fn read(path: &Path, bytes: &[u8], cas: &[CertificateDer<'_>]) -> Result<Revocations, String> {
        let path = path.display();
        let lists = RevocationList::parse_all(bytes).map_err(|error| format!("{path}: {error}"))?;
        let cas: Vec<(&CertificateDer<'_>, String)> =
            cas.iter().filter_map(|ca| Some((ca, CertificateInfo::parse(ca).ok()?.subject))).collect();
        // With the place of the CA that signed it: there may be two of one name.
        let mut kept: Vec<(usize, RevocationList)> = Vec::new();
        let mut read = Revocations::default();
        for list in lists {
            if !cas.iter().any(|(_, subject)| *subject == list.issuer) {
                read.warnings.push(format!(
                    "{path}: a list of {}, which is no CA of this listener's clients: it has no effect",
                    list.issuer
                ));
                continue;
            }
            let signer = cas.iter().position(|(ca, subject)| *subject == list.issuer && list.is_signed_by(ca));
            let Some(signer) = signer else {
                return Err(format!("{path}: the list of {} was not signed by it", list.issuer));
            };
            // The first that is found for an issuer is asked: only the newest is given.
            match kept.iter_mut().find(|(known, _)| *known == signer) {
                Some((_, known)) if list.is_newer_than(known) => *known = list,
                Some(_) => {}
                None => kept.push((signer, list)),
            }
        }
        for (_, list) in kept {
            if let Some(next) = list.next_update {
                read.ends.push((format!("{path}: the list of {}", list.issuer), next));
            }
            read.revoked.extend(list.serials.iter().map(|serial| CertificateId::new(&list.issuer, serial)));
            read.lists.push(list);
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
        let read = |text: &str, cas: &[CertificateDer<'_>]| Revocations::read(Path::new("x.crl"), text.as_bytes(), cas);
        let (older, newer) = (list(&ours, 1, now - Duration::hours(2)), list(&ours, 2, now));
        for text in [format!("{older}{newer}"), format!("{newer}{older}")] {
            let both = read(&text, &[ours_der.clone(), other_der.clone()]).unwrap();
            assert_eq!((both.lists.len(), both.revoked.len(), both.warnings.len()), (1, 2, 0));
        }
        let foreign = read(&list(&other, 1, now), std::slice::from_ref(&ours_der)).unwrap();
        assert!(foreign.lists.is_empty() && foreign.warnings[0].contains("it has no effect"), "{:?}", foreign.warnings);
        let outdated = read(&list(&ours, 1, now - Duration::days(3)), std::slice::from_ref(&ours_der)).unwrap();
        assert!(outdated.lists.len() == 1 && outdated.ends[0].1 < now && outdated.warnings.is_empty());
        // The issuer's name is there, its signature is not.
        let mut der = RevocationList::parse_all(newer.as_bytes()).unwrap()[0].der.to_vec();
        *der.last_mut().unwrap() ^= 1;
        let forged = Revocations::read(Path::new("x.crl"), &der, &[ours_der]);
        assert!(forged.is_err_and(|error| error.contains("was not signed by it")));
    }
}
