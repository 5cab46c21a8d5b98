"""The systemd user service that runs a device."""

from __future__ import annotations

from collections.abc import Sequence

_UNIT = """\
[Unit]
Description=Narrows: the device's half of {name}
Documentation=https://narrows.readthedocs.io/
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
# A frame that never ends is a hang: narrows run then stops telling systemd that it is alive.
WatchdogSec=60
TimeoutStartSec=15min
Restart=always
RestartSec=5
Environment=PYTHONUNBUFFERED=1

NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=%h/{root} -%h/.cache/narrows
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
UMask=0077

[Install]
WantedBy=default.target
"""


def service_unit(name: str, command: Sequence[str], root: str) -> str:
    """The unit's text.

    Args:
        name: of the model.
        command: what runs; `%h` in it is the user's home.
        root: the folder under the home that the service may write to.
    """
    return _UNIT.format(name=_plain(name), command=" ".join(map(_quoted, command)), root=root)


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).replace("%", "%%")


def _quoted(word: str) -> str:
    """One word of ExecStart: systemd.service(5), "Command lines"."""
    home, _, rest = word.rpartition("%h/")
    safe = rest.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    whole = f"{home}%h/{safe}" if "%h/" in word else safe
    return f'"{whole}"' if any(c in whole for c in " \t\"';") or not whole else whole
