//! The verifier, the same in both directions: chain, time, use and revocation, then who it is.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::SingleCertAndKey,
    version::TLS13,
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};

use crate::{Certificate, Credentials, Identity, Moment, Refusal, SpiffeId, credentials::provider};

/// HTTP/2, which gRPC is spoken over.
const HTTP2: &[u8] = b"h2";

/// What the other end is to us in a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It called us.
    Client,
    /// We called it.
    Server,
}

impl Credentials {
    /// Whether we believe that a chain's first certificate is what it says, and who that is.
    pub(crate) fn examine(&self, chain: &[CertificateDer<'_>], role: Role, now: UnixTime) -> Result<SpiffeId, Refusal> {
        let (leaf, between) = chain.split_first().ok_or(Refusal::NoCertificate)?;
        let leaf_certificate = EndEntityCert::try_from(leaf).map_err(Refusal::of_chain)?;
        // webpki believes a root for ever; its own dates are the operator's word too.
        let valid = |facts: &Certificate| (facts.not_before..=facts.not_after).contains(&Moment::from(now));
        let roots: Vec<TrustAnchor<'_>> =
            self.roots.iter().filter(|root| valid(&root.facts)).map(|root| root.anchor.clone()).collect();
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().flatten().collect();
        // Every CA of the chain must have its list, once there are lists: one that is missing hides what is in it. A list
        // that should have been replaced still says what it says; that is warned about, not refused, because the
        // fabric must not stop when nobody had time to copy a file.
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let algorithms = algorithms();
        leaf_certificate
            .verify_for_usage(algorithms.all, &roots, between, now, usage, revocation, None)
            .map_err(Refusal::of_chain)?;
        let found = Certificate::read(leaf).map_err(Refusal::Unverifiable)?.id.map_err(Refusal::NoIdentity)?;
        if found.domain != self.id.domain {
            return Err(Refusal::OtherDomain { found, ours: self.id.domain.clone() });
        }
        Ok(found)
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

/// One handshake's verifier, which remembers what it found.
pub(crate) struct Examination {
    credentials: Arc<Credentials>,
    /// Whom we mean to talk to; `None`: whoever is of the fabric.
    wanted: Option<Identity>,
    finding: OnceLock<Result<SpiffeId, Refusal>>,
}

impl fmt::Debug for Examination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Examination").field("wanted", &self.wanted).field("finding", &self.finding).finish()
    }
}

impl Examination {
    pub(crate) fn new(credentials: Arc<Credentials>, wanted: Option<Identity>) -> Arc<Self> {
        Arc::new(Self { credentials, wanted, finding: OnceLock::new() })
    }

    /// Who the other end is, or why it is not accepted; `None` before it has shown a certificate.
    pub(crate) fn finding(&self) -> Option<&Result<SpiffeId, Refusal>> {
        self.finding.get()
    }

    /// How we serve one connection.
    pub(crate) fn serve(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Error> {
        let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
        let own = SingleCertAndKey::from(self.credentials.key.clone());
        let mut config = config.with_client_cert_verifier(self.clone()).with_cert_resolver(Arc::new(own));
        config.alpn_protocols = vec![HTTP2.to_vec()];
        // A session that is taken up again shows no certificate, and the one it had may be revoked.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    /// How we make one connection.
    pub(crate) fn call(self: &Arc<Self>) -> Result<Arc<ClientConfig>, Error> {
        let config = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
        let own = SingleCertAndKey::from(self.credentials.key.clone());
        let config = config.dangerous().with_custom_certificate_verifier(self.clone());
        let mut config = config.with_client_cert_resolver(Arc::new(own));
        config.alpn_protocols = vec![HTTP2.to_vec()];
        config.resumption = Resumption::disabled();
        // Identities are not host names.
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    fn find(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(between).cloned().collect();
        let found = self.credentials.examine(&chain, role, now).and_then(|found| match &self.wanted {
            Some(wanted) if *wanted != found.identity => {
                Err(Refusal::OtherIdentity { found: found.identity, wanted: wanted.clone() })
            }
            _ => Ok(found),
        });
        let found = self.finding.get_or_init(|| found);
        found.as_ref().map(drop).map_err(|refusal| CertificateError::from(refusal.clone()).into())
    }
}

impl ServerCertVerifier for Examination {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.find(end_entity, intermediates, Role::Server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for Examination {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.find(end_entity, intermediates, Role::Client, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn only_tls13() -> Error {
    Error::General("TLS 1.3 is the only version spoken".to_owned())
}
