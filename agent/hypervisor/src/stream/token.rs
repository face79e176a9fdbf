//! What the source says first on a stream, so that nobody else is listened to.

use std::fmt;

use rand::{TryRngCore as _, rngs::OsRng};
use subtle::ConstantTimeEq as _;

/// Bytes of a token.
pub(super) const LENGTH: usize = 32;

/// Known to the two ends of one migration; good for one connection.
#[derive(Clone, Copy)]
pub struct Token([u8; LENGTH]);

impl Token {
    /// A new one.
    ///
    /// # Panics
    /// When the kernel gives no random numbers, on which everything rests.
    #[expect(clippy::expect_used, reason = "nothing can be kept secret then")]
    pub(super) fn fresh() -> Self {
        let mut bytes = [0; LENGTH];
        OsRng.try_fill_bytes(&mut bytes).expect("the kernel gives random numbers");
        Self(bytes)
    }

    /// As the other end sent it; `None` if it cannot be one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// To be sent to the source, and to nobody else.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether these bytes are it; how long it takes does not tell how many are.
    pub(super) fn is(&self, said: &[u8; LENGTH]) -> bool {
        self.0.ct_eq(said).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_own_alone_and_is_not_shown() {
        let (one, other) = (Token::fresh(), Token::fresh());
        assert!(one.is(&one.0) && !one.is(&other.0) && !one.is(&[0; LENGTH]));
        assert_eq!(format!("{one:?}"), "Token(…)");
        assert!(Token::from_bytes(&one.0[..31]).is_none());
        assert!(Token::from_bytes(one.as_bytes()).unwrap().is(&one.0));
    }
}
