"""`python -m antlm_bench` is the same command as `antlm-bench`."""

from antlm_bench.cli.app import main

if __name__ == "__main__":
    main()
