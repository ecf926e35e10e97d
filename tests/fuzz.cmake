# Fuzz targets: every tests/fuzz/fuzz_NAME.c defines LLVMFuzzerTestOneInput; its seeds lie in tests/fuzz/corpus/NAME/,
# words worth trying (libFuzzer's format) in tests/fuzz/NAME.dict.
#
#   usual builds      fuzz_NAME is built with tests/fuzz/replay.c as its main: it runs the seeds and some thousand small mutations
#                     of them, the same ones each time. A ctest labelled fuzz: `ctest -L fuzz`, best under MOA_SANITIZE.
#   MOA_FUZZ=ON       (clang) fuzz_NAME is a libFuzzer program; its ctest fuzzes for MOA_FUZZ_SECONDS. New inputs go to the build
#                     folder, never to the seeds:  cmake -S . -B build/fuzz -DCMAKE_C_COMPILER=clang -DMOA_FUZZ=ON
#                                                  -DMOA_SANITIZE=address,undefined; build/fuzz/fuzz_gguf tests/fuzz/corpus/gguf
set(MOA_FUZZ_SECONDS 60 CACHE STRING "Seconds each libFuzzer target runs under ctest")

# what a target links, by its name up to the first underscore; anything else: moa_core
set(fuzz_link_text moa_base)
set(fuzz_link_json moa_base)
set(fuzz_link_plan moa_plans)
set(fuzz_link_session moa_sessions)
set(fuzz_link_sessions moa_sessions)
set(fuzz_link_viz moa_viz)
set(fuzz_link_tui moa_tui)

if(MOA_FUZZ AND NOT MOA_SANITIZE MATCHES "address")
  message(WARNING "MOA_FUZZ without MOA_SANITIZE=address,undefined finds little, and only the fuzz_* targets will link")
endif()

file(GLOB fuzzers CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/fuzz_*.c)
foreach(file ${fuzzers})
  get_filename_component(stem ${file} NAME_WE)
  string(REGEX REPLACE "^fuzz_" "" name ${stem})
  string(REGEX REPLACE "_.*" "" area ${name})
  set(corpus ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/corpus/${name})
  set(libraries moa_core)
  if(DEFINED fuzz_link_${area})
    set(libraries ${fuzz_link_${area}})
  endif()
  if(MOA_FUZZ)
    add_executable(${stem} ${file})
    target_link_options(${stem} PRIVATE -fsanitize=fuzzer)
    file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz-found/${name})
    set(dictionary "")
    if(EXISTS ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/${name}.dict)
      set(dictionary -dict=${CMAKE_CURRENT_SOURCE_DIR}/fuzz/${name}.dict)
    endif()
    add_test(NAME ${stem} COMMAND ${stem} ${dictionary} -max_total_time=${MOA_FUZZ_SECONDS} -timeout=10 -malloc_limit_mb=256 -rss_limit_mb=1024
      -artifact_prefix=${CMAKE_BINARY_DIR}/fuzz-found/${name}- ${CMAKE_BINARY_DIR}/fuzz-found/${name} ${corpus})
  else()
    add_executable(${stem} ${file} ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/replay.c)
    moa_add_test(${stem} ${stem} --mutations=20000 ${corpus})
  endif()
  target_link_libraries(${stem} PRIVATE ${libraries})
  math(EXPR limit "${MOA_FUZZ_SECONDS} + 600")
  set_tests_properties(${stem} PROPERTIES LABELS fuzz TIMEOUT ${limit} SKIP_RETURN_CODE 77)
endforeach()
