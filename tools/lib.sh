# Shared by the scripts beside it. POSIX sh; nothing is asked: no terminal is needed.

say() { printf '%s\n' "setup: $*" >&2; }

# How to become root without asking: nothing to do, `sudo -n`, or not at all (status 1).
root_prefix() {
    if [ "$(id -u)" = 0 ]; then echo ""; return 0; fi
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then echo "sudo -n"; return 0; fi
    return 1
}

# apt_install PACKAGE…: from the distribution, if that is permitted. Services of these packages are not started: Debian's
# policy-rc.d says so while they are installed (a file that is there already is left alone). One clone at a time.
apt_install() {
    command -v apt-get >/dev/null 2>&1 || { say "no apt-get here: install $* yourself"; return 1; }
    as_root=$(root_prefix) || { say "not root, and sudo asks for a password: to have it, run: sudo apt-get install $*"; return 1; }
    say "installing $* with apt-get …"
    log=$(mktemp)
    # shellcheck disable=SC2086
    if ! $as_root flock /run/gitquorum-setup.lock sh -s -- "$@" >"$log" 2>&1 <<'ROOT'
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
fi
install() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
        install --no-install-recommends "$@" </dev/null
}
install "$@" || { apt-get -q -o DPkg::Lock::Timeout=300 update </dev/null && install "$@"; }
ROOT
    then
        tail -n 15 "$log" >&2
        rm -f "$log"
        say "apt-get could not install $*"
        return 1
    fi
    rm -f "$log"
}
