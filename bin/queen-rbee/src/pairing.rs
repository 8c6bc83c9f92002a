//! Machines that were paired: the one-time codes that are open, and by what certificate and token each hive is known.
//! Owns what makes a hive be believed; what it may then do is a matter of the routes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use auth_min::TokenDigest;
use input_validation::NodeName;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::pairing::PairReply;
use rbee_home::Home;
use rbee_http::{ApiError, CallError, HopClient, Principal};
use rbee_tls::{Authority, CertificateFingerprint, HiveKey, Peer, PeerCertificate, Served, Trust};
use secrets_management::{Secret, SecretError, load_or_generate};
use tokio::time::Instant;

use crate::hives::{self, Hive};

/// For how long a code can be used: to walk to the other machine, and not to lie in a chat for days.
pub(crate) const CODE_TIME: Duration = Duration::from_secs(10 * 60);
/// Most codes that are open at once; the oldest gives way to a further one.
const CODES_MAX: usize = 16;

/// The machines that were paired, and those that are about to be.
#[derive(Debug)]
pub(crate) struct Pairings {
    /// Absent where the queen has no CA of her own, and so can pair nobody.
    served: Option<(Served, Arc<Authority>)>,
    /// What the tokens are made of.
    root: Secret,
    database: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<NodeName, Code>,
    paired: BTreeMap<NodeName, Paired>,
}

/// A code that can be used; only what it is compared by is kept.
#[derive(Debug)]
struct Code {
    digest: TokenDigest,
    until: Instant,
}

#[derive(Debug)]
struct Paired {
    certificate: CertificateFingerprint,
    token: TokenDigest,
}

impl Pairings {
    /// Starts with the machines that were paired before. Blocks.
    ///
    /// # Errors
    /// Where the secret of the tokens cannot be used.
    pub(crate) fn open(
        home: &Home,
        served: Option<Served>,
        known: &[Hive],
    ) -> Result<Self, SecretError> {
        let root = load_or_generate(&home.pairing_key())?;
        let mut paired = BTreeMap::new();
        for Hive { name, certificate, .. } in known {
            if let Some(certificate) = *certificate {
                let token = TokenDigest::of(token(&root, name, &certificate)?.expose());
                paired.insert(name.clone(), Paired { certificate, token });
            }
        }
        let served = served.and_then(|served| {
            let authority = Arc::clone(served.authority.as_ref()?);
            Some((served, authority))
        });
        let state = Mutex::new(State { open: BTreeMap::new(), paired });
        Ok(Self { served, root, database: home.beehives_db(), state })
    }

    /// Opens the way for one machine: returns the fingerprint of the CA, and the secret of the code, which replaces an
    /// earlier one of the same name.
    ///
    /// # Errors
    /// `validation_failed` for a queen without a CA of her own.
    pub(crate) fn begin(
        &self,
        name: &NodeName,
    ) -> Result<(CertificateFingerprint, Secret), ApiError> {
        let authority = self.authority()?;
        let secret = Secret::generate().map_err(internal)?;
        let now = Instant::now();
        let mut state = self.lock();
        state.open.retain(|_, code| now < code.until);
        state.open.remove(name);
        if state.open.len() >= CODES_MAX {
            let oldest = state.open.iter().min_by_key(|(_, code)| code.until);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                state.open.remove(&oldest);
            }
        }
        let digest = TokenDigest::of(secret.expose());
        state.open.insert(name.clone(), Code { digest, until: now + CODE_TIME });
        Ok((authority.fingerprint(), secret))
    }

    /// Returns as whom a token is good: as that of a machine that is about to be paired, or of a hive that shows its
    /// certificate with it. Each comparison takes the same time.
    pub(crate) fn recognise(
        &self,
        shown: &TokenDigest,
        certificate: Option<&PeerCertificate>,
    ) -> Option<Principal> {
        let state = self.lock();
        let Some(PeerCertificate { peer, fingerprint }) = certificate else {
            let now = Instant::now();
            let mut open = state.open.iter().filter(|(_, code)| now < code.until);
            let (name, _) = open.find(|(_, code)| code.digest.matches(shown))?;
            return Some(Principal::Applicant(name.clone()));
        };
        match peer {
            Peer::Hive(name) => {
                let known =
                    state.paired.get(name).filter(|known| known.certificate == *fingerprint)?;
                known.token.matches(shown).then(|| Principal::Hive(name.clone()))
            }
            // She calls herself nowhere.
            Peer::Queen => None,
        }
    }

    /// Says whether a machine of this name was paired, and so is known by its certificate alone.
    pub(crate) fn is_paired(&self, name: &NodeName) -> bool {
        self.lock().paired.contains_key(name)
    }

    /// Uses up the code of a machine; `false` where another one was faster.
    pub(crate) fn use_up(&self, name: &NodeName) -> bool {
        self.lock().open.remove(name).is_some_and(|code| Instant::now() < code.until)
    }

    /// Takes a machine in: signs for its key, writes it down, and makes a client for it. Blocks.
    ///
    /// # Errors
    /// `internal_error` where something cannot be written.
    pub(crate) fn admit(
        &self,
        name: &NodeName,
        url: &str,
        key: &HiveKey,
    ) -> Result<(PairReply, HopClient), ApiError> {
        let authority = self.authority()?;
        let (certificate, fingerprint) = authority.certify(name, key).map_err(internal)?;
        let token = token(&self.root, name, &fingerprint).map_err(internal)?;
        let client = self.client(name, url, &fingerprint).map_err(internal)?;
        hives::add_paired(&self.database, name, url, &fingerprint).map_err(internal)?;
        let digest = TokenDigest::of(token.expose());
        let paired = Paired { certificate: fingerprint, token: digest };
        self.lock().paired.insert(name.clone(), paired);
        let ca = authority.pem().to_owned();
        Ok((PairReply { certificate, ca, token: token.expose().to_owned() }, client))
    }

    /// Makes a client for a hive that was paired, which takes nobody else for it.
    ///
    /// # Errors
    /// [`CallError::Tls`] and [`CallError::Setup`].
    pub(crate) fn client(
        &self,
        name: &NodeName,
        url: &str,
        certificate: &CertificateFingerprint,
    ) -> Result<HopClient, CallError> {
        let token =
            token(&self.root, name, certificate).map_err(|error| CallError::Tls(error.into()))?;
        let trust = match &self.served {
            Some((served, authority)) => Trust::of_authority(authority)
                .expecting(Peer::Hive(name.clone()))
                .showing(served.own.clone()),
            None => Trust::nobody(),
        };
        HopClient::trusting(url, Arc::new(token), &trust)
    }

    /// Believes a hive no more, from now on, and forgets the machine; `false` where none of this name was paired. Blocks.
    ///
    /// # Errors
    /// `internal_error` where that cannot be written; it holds until the queen ends all the same, and can be tried again.
    pub(crate) fn forget(&self, name: &NodeName) -> Result<bool, ApiError> {
        let was_believed = self.lock().paired.remove(name).is_some();
        let was_written = hives::remove_paired(&self.database, name).map_err(internal)?;
        Ok(was_believed || was_written)
    }

    fn authority(&self) -> Result<&Arc<Authority>, ApiError> {
        let message = "this queen has no CA of her own, which pairing needs; set mode = \"local\" under [tls]";
        let detail = || ErrorDetail::new(ErrorCode::ValidationFailed, message);
        self.served.as_ref().map(|(_, authority)| authority).ok_or_else(|| detail().into())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the token of a hive: another one for each certificate.
fn token(
    root: &Secret,
    name: &NodeName,
    certificate: &CertificateFingerprint,
) -> Result<Secret, SecretError> {
    root.derive("hive token", &format!("{name} {certificate}"))
}

fn internal(error: impl std::error::Error) -> ApiError {
    tracing::error!(error = %error, code = %ErrorCode::InternalError, "a machine cannot be paired or forgotten");
    ApiError::new(ErrorCode::InternalError, "this could not be done; the queen's log says why")
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn queen() -> (tempfile::TempDir, Pairings) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::open(&directory.path().join("home")).unwrap();
        rbee_home::ensure_private_directory(&home.tls_dir()).unwrap();
        let settings =
            rbee_tls::TlsSettings { mode: rbee_tls::TlsMode::Local, ..Default::default() };
        let at = "127.0.0.1:1".parse().unwrap();
        let served = settings.open(&home.tls_dir(), at, &Peer::Queen).unwrap();
        let pairings = Pairings::open(&home, served, &[]).unwrap();
        (directory, pairings)
    }

    fn name(text: &str) -> NodeName {
        text.parse().unwrap()
    }

    fn is_applicant(pairings: &Pairings, secret: &Secret) -> bool {
        let digest = TokenDigest::of(secret.expose());
        matches!(pairings.recognise(&digest, None), Some(Principal::Applicant(_)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_code_ends_after_ten_minutes_and_when_it_was_used_or_replaced() {
        let (_directory, pairings) = queen();
        let attic = name("attic");
        let (_, secret) = pairings.begin(&attic).unwrap();
        assert!(is_applicant(&pairings, &secret));
        advance(CODE_TIME).await;
        assert!(!is_applicant(&pairings, &secret) && !pairings.use_up(&attic), "its time is over");

        let (_, first) = pairings.begin(&attic).unwrap();
        let (_, second) = pairings.begin(&attic).unwrap();
        assert!(!is_applicant(&pairings, &first) && is_applicant(&pairings, &second));
        assert!(pairings.use_up(&attic));
        assert!(!is_applicant(&pairings, &second) && !pairings.use_up(&attic), "it was used");
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_codes_are_open() {
        let (_directory, pairings) = queen();
        let mut codes = Vec::new();
        for at in 0..=CODES_MAX {
            codes.push(pairings.begin(&name(&format!("m{at}"))).unwrap().1);
            advance(Duration::from_secs(1)).await;
        }
        let open = codes.iter().filter(|secret| is_applicant(&pairings, secret)).count();
        assert_eq!((open, is_applicant(&pairings, &codes[0])), (CODES_MAX, false));
    }

    #[test]
    fn a_hive_is_known_by_its_newest_certificate_with_the_token_for_it() {
        let (_directory, pairings) = queen();
        let attic = name("attic");
        let admit = |name: &NodeName| {
            let (key, _) = HiveKey::generate().unwrap();
            let (reply, _) = pairings.admit(name, "https://127.0.0.1:9200", &key).unwrap();
            let fingerprint = pairings.lock().paired[name].certificate;
            let peer = Peer::Hive(name.clone());
            (PeerCertificate { peer, fingerprint }, TokenDigest::of(&reply.token))
        };
        let (former, former_token) = admit(&attic);
        let (newest, token) = admit(&attic);
        let (other, other_token) = admit(&name("cellar"));
        let known = |certificate: &PeerCertificate, token: &TokenDigest| match pairings
            .recognise(token, Some(certificate))
        {
            Some(Principal::Hive(name)) => Some(name),
            _ => None,
        };
        assert_eq!(known(&newest, &token), Some(attic.clone()));
        for (certificate, token) in [
            (&newest, &former_token),
            (&former, &former_token),
            (&former, &token),
            (&newest, &other_token),
            (&other, &token),
        ] {
            assert_eq!(known(certificate, token), None);
        }
        assert!(pairings.forget(&attic).unwrap() && !pairings.forget(&attic).unwrap());
        assert_eq!(known(&newest, &token), None, "it was forgotten");
        assert_eq!(known(&other, &other_token), Some(name("cellar")));
    }

    #[test]
    fn what_could_not_be_written_can_be_forgotten_again() {
        let (_directory, pairings) = queen();
        let attic = name("attic");
        let (key, _) = HiveKey::generate().unwrap();
        pairings.admit(&attic, "https://127.0.0.1:9200", &key).unwrap();
        let (database, aside) = (&pairings.database, pairings.database.with_extension("aside"));
        std::fs::rename(database, &aside).unwrap();
        std::fs::create_dir(database).unwrap();
        assert!(pairings.forget(&attic).is_err() && !pairings.is_paired(&attic));
        std::fs::remove_dir(database).unwrap();
        std::fs::rename(&aside, database).unwrap();
        assert!(pairings.forget(&attic).unwrap(), "its row is still there");
        assert_eq!(hives::load(database).unwrap().remote, []);
        assert!(!pairings.forget(&attic).unwrap());
    }
}
