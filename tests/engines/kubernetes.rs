//! Sessions in Pods, by a real Kubernetes: `make test-kubernetes` builds and runs it.

mod basis;
mod cluster;
mod daemon;
mod dwell;
mod faults;
mod installed;
mod namespace;
mod node;
mod stories;
mod storm;
