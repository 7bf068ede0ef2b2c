//! Finds what is free again after a collection: runs in spans that are partly alive, and spans that are wholly free.
