//! One certificate, from the account to the PEM.

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, Order,
    OrderStatus, Problem, RetryPolicy,
};

use super::certificate;
use super::https::Https;
use super::kept::Kept;
use super::{Acme, AcmeError};
use crate::gateway::Issued;

/// How long the authority may take to look at a proof, and to issue.
const PATIENCE: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(200))
    .timeout(Duration::from_secs(180));

/// What an authority says of an account that it does not have.
const ACCOUNT_UNKNOWN: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Why an order came to nothing.
pub(super) enum OrderError {
    Acme(Error),
    Own(String),
}

impl OrderError {
    pub(super) fn is_account_unknown(&self) -> bool {
        match self {
            Self::Acme(Error::Api(problem)) => problem.r#type.as_deref() == Some(ACCOUNT_UNKNOWN),
            Self::Acme(_) | Self::Own(_) => false,
        }
    }
}

impl From<Error> for OrderError {
    fn from(error: Error) -> Self {
        Self::Acme(error)
    }
}

impl From<OrderError> for AcmeError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Acme(Error::Api(problem)) => Self(sentence(&problem)),
            OrderError::Acme(error) => Self(error.to_string()),
            OrderError::Own(sentence) => Self(sentence),
        }
    }
}

/// The account that is kept, or a new one.
pub(super) async fn account(acme: &Acme, kept: &Kept) -> Result<Account, AcmeError> {
    let builder = Account::builder_with_http(Box::new(Https::new(acme.authority.as_deref())?));
    let failed = |error: Error| AcmeError::from(OrderError::Acme(error));
    if let Some(account) = kept.account()? {
        return builder.from_credentials(account).await.map_err(failed);
    }
    let contact = acme.email.as_ref().map(|email| format!("mailto:{email}"));
    let contact: Vec<&str> = contact.as_deref().into_iter().collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let created = builder.create(&new, acme.directory.clone(), None).await;
    let (account, credentials) = created.map_err(failed)?;
    kept.keep_account(&credentials)?;
    Ok(account)
}

/// A new certificate for `name` and its key, PEM.
pub(super) async fn certificate(
    account: &Account,
    name: &str,
    issued: &Issued,
) -> Result<String, OrderError> {
    let identifiers = [Identifier::Dns(name.to_owned())];
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let mut proving = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        // One that was proven a short while ago need not be again.
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
        let mut challenge = challenge.ok_or_else(|| {
            OrderError::Own("the authority does not offer TLS-ALPN-01 for it".to_owned())
        })?;
        let digest = challenge.key_authorization().digest();
        let proof = certificate::proof(name, digest.as_ref());
        let proof = proof.map_err(|AcmeError(why)| OrderError::Own(why))?;
        proving.push(issued.prove(name, proof));
        challenge.set_ready().await?;
    }
    if order.poll_ready(&PATIENCE).await? != OrderStatus::Ready {
        return Err(why_not(&mut order).await);
    }
    let made = certificate::request(name);
    let (key, request) =
        made.map_err(|why| OrderError::Own(format!("no key can be made: {why}")))?;
    order.finalize_csr(&request).await?;
    let chain = order.poll_certificate(&PATIENCE).await?;
    Ok(key.serialize_pem() + &chain)
}

/// What the authority has against an order: it says so with the proof that it missed.
async fn why_not(order: &mut Order) -> OrderError {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else {
            continue;
        };
        let problem = state.challenges.iter().find_map(|it| it.error.clone());
        if let Some(problem) = problem {
            return OrderError::Acme(Error::Api(problem));
        }
    }
    OrderError::Own("the authority refuses it and does not say why".to_owned())
}

/// Its own words, which are more than its type.
fn sentence(problem: &Problem) -> String {
    let parts = problem.subproblems.iter().map(|it| &it.detail);
    let details: Vec<_> = std::iter::once(&problem.detail)
        .chain(parts)
        .flatten()
        .map(|detail| detail.trim_end_matches('.'))
        .collect();
    let kind = problem.r#type.as_deref().unwrap_or("no type");
    format!("the authority says: {} ({kind})", details.join("; "))
}
