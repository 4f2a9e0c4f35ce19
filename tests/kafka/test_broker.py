"""The broker that the other tests run on."""

import subprocess
import sys


def test_the_broker_answers(kafka):
    """It can be reached by the very client that headrace uses."""
    program = (
        "import asyncio, sys\n"
        "from aiokafka.admin import AIOKafkaAdminClient\n"
        "async def main():\n"
        "    admin = AIOKafkaAdminClient(bootstrap_servers=sys.argv[1])\n"
        "    await admin.start()\n"
        "    print(len((await admin.describe_cluster())['brokers']))\n"
        "    await admin.close()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, kafka], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 1
