//! Who asks, and whose a thing is.

use serde::{Deserialize, Serialize};

/// A user's name, as the operator gave it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UserId(pub String);

/// An organisation's name, as the operator gave it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OrgId(pub String);

/// Whose a row is: an organisation's, or a user's who acts without one.
///
/// Every read of a tenant's rows takes one, so that a query without an owner
/// cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// All of an organisation's members.
    Org(OrgId),
    /// One user, outside any organisation.
    User(UserId),
}

impl Owner {
    /// The organisation, if it is one.
    #[must_use]
    pub fn org(&self) -> Option<&OrgId> {
        match self {
            Self::Org(org) => Some(org),
            Self::User(_) => None,
        }
    }
}

/// Who a request comes from, as its key says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// The user that the key was made for.
    pub user: UserId,
    /// The organisation that the key acts in.
    pub org: Option<OrgId>,
    /// May make keys for others.
    pub admin: bool,
}

impl Principal {
    /// Whose rows this principal sees and makes.
    #[must_use]
    pub fn owner(&self) -> Owner {
        match &self.org {
            Some(org) => Owner::Org(org.clone()),
            None => Owner::User(self.user.clone()),
        }
    }
}
