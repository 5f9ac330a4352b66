#!/usr/bin/python3 -IS
"""A CNI plugin of CNI 1.1 that notes each call in a file and does what its configuration says.

note: the file. do: {command: what}: {"error": {...}} says that and ends with 1, {"text": ...} says that and ends with "code",
{"hang": true} never ends, {"leave": file} leaves a process behind that holds stdout, whose pid is written there.
"""

import json
import os
import subprocess
import sys

command = os.environ["CNI_COMMAND"]
config = json.load(sys.stdin)
netns = os.environ.get("CNI_NETNS", "")
found = None
if netns:
    try:
        found = os.stat(netns).st_ino
    except OSError:
        found = 0
call = {
    "command": command,
    "plugin": config.get("label", ""),
    "container": os.environ.get("CNI_CONTAINERID", ""),
    "interface": os.environ.get("CNI_IFNAME", ""),
    "netns": netns,
    "inode": found,
    "config": config,
}
if command != "VERSION":
    with open(config["note"], "a") as file:
        file.write(json.dumps(call) + "\n")
do = config.get("do", {}).get(command, {})
if "leave" in do:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(do["leave"], "w") as file:
        file.write(str(child.pid))
if do.get("hang"):
    subprocess.run(["sleep", "1000"], check=False)
if "error" in do:
    json.dump({"cniVersion": config["cniVersion"], **do["error"]}, sys.stdout)
    sys.exit(1)
if "text" in do:
    sys.stdout.write(do["text"])
    sys.exit(do.get("code", 0))
if command == "VERSION":
    json.dump({"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}, sys.stdout)
if command == "ADD":
    result = config.get("prevResult") or {
        "cniVersion": config["cniVersion"],
        "interfaces": [{"name": "veth1"}, {"name": call["interface"], "mac": "02:00:00:00:00:01", "sandbox": netns}],
        "ips": [
            {"address": address, "interface": 1, "gateway": "10.1.0.1"}
            for address in config.get("give", ["10.1.0.2/24"])
        ],
        "dns": {"nameservers": ["10.1.0.53"]},
    }
    json.dump(result, sys.stdout)
