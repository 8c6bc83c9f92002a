//! Signs what a test says, as an identity provider would; the RSA key beside
//! this file is good for nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair, RsaPublicKeyComponents,
};
use serde_json::{Value, json};

/// A key of each kind, under the ids `rsa`, `ec` and `ed`.
pub(crate) struct Signer {
    random: SystemRandom,
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    /// Makes fresh keys, the RSA one apart.
    pub(crate) fn new() -> Self {
        let random = SystemRandom::new();
        let ec = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        Self {
            rsa: RsaKeyPair::from_pkcs8(include_bytes!("rsa-of-tests.pkcs8")).unwrap(),
            ec: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, ec.as_ref(), &random)
                .unwrap(),
            ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap(),
            random,
        }
    }

    /// The modulus of the RSA key, which is public.
    pub(crate) fn modulus(&self) -> Vec<u8> {
        self.rsa_components().n
    }

    fn rsa_components(&self) -> RsaPublicKeyComponents<Vec<u8>> {
        RsaPublicKeyComponents::from(self.rsa.public())
    }

    /// The public keys, as a provider publishes them.
    pub(crate) fn key_set(&self) -> Value {
        let exponent = self.rsa_components().e;
        let point = self.ec.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "kid": "rsa", "alg": "RS256", "use": "sig",
                "n": encode(self.modulus()), "e": encode(exponent)},
            {"kty": "EC", "kid": "ec", "crv": "P-256",
                "x": encode(&point[1..33]), "y": encode(&point[33..])},
            {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": encode(self.ed.public_key())},
        ]})
    }

    /// Signs with the key of this id, whatever the header says.
    pub(crate) fn sign(&self, key: &str, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", encode(header), encode(payload));
        let bytes = message.as_bytes();
        let signature = match key {
            "rsa" => {
                let mut signature = vec![0; self.rsa.public().modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &self.random, bytes, &mut signature).unwrap();
                signature
            }
            "ec" => self.ec.sign(&self.random, bytes).unwrap().as_ref().to_vec(),
            _ => self.ed.sign(bytes).as_ref().to_vec(),
        };
        format!("{message}.{}", encode(signature))
    }

    /// Makes a token as it should be, with the key of this id.
    pub(crate) fn token(&self, key: &str, claims: &Value) -> String {
        let algorithm = match key {
            "rsa" => "RS256",
            "ec" => "ES256",
            _ => "EdDSA",
        };
        let header = json!({"alg": algorithm, "kid": key, "typ": "JWT"});
        self.sign(key, &header.to_string(), &claims.to_string())
    }
}
