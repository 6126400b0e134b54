//! nginx with one worker.

use std::path::Path;

use super::{Peer, start_upstream};
use crate::Result;
use crate::by_hand::free_address;
use crate::gateway::install::from_debian;
use crate::gateway::program::Program;

/// Connections are kept on both sides, bodies pass through buffers with which it is at
/// its fastest, and nothing is written to disk.
const CONFIG: &str = "
daemon off;
pid {dir}/pid;
worker_processes 1;
worker_rlimit_nofile 16384;
events { worker_connections 8192; }
http {
    access_log off;
    client_body_temp_path {dir}/client;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_max_body_size 0;
    client_body_buffer_size 256k;
    proxy_http_version 1.1;
    proxy_read_timeout 1h;
    proxy_send_timeout 1h;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    upstream app {
        server {upstream};
        keepalive 512;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }
    server {
        listen {address} backlog=4096;
        location / {
            proxy_pass http://app;
            proxy_set_header Host $host;
            proxy_set_header Connection \"\";
        }
        location /bytes {
            proxy_pass http://app;
            proxy_set_header Host $host;
            proxy_set_header Connection \"\";
            proxy_buffer_size 64k;
            proxy_buffers 16 64k;
            proxy_busy_buffers_size 256k;
        }
        location /ws {
            proxy_pass http://app;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }
    }
}
";

pub fn start(_: &Path) -> Result<Option<Peer>> {
    let Some(nginx) = from_debian("nginx")? else {
        return Ok(None);
    };
    let upstream = start_upstream()?;
    let address = free_address().ok_or("no port is free")?.to_string();
    let config = CONFIG
        .replace("{upstream}", &upstream.address)
        .replace("{address}", &address);
    let arguments = ["-p", "{dir}", "-e", "{dir}/error.log", "-c", "{config}"];
    let proxy = Program::start(&nginx, &arguments, &config, &address)?;
    Peer::before(upstream, "nginx", address, proxy)
}
